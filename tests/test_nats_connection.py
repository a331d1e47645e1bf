"""The bridge's NATS connection against real servers: credentials, TLS, several addresses, what breaks."""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nkeys
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actors.clients.nats.connection import NatsConnection, SinkRefused, open_nats
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.embedded.process import free_port
from actors.errors import ConfigError, SinkUnavailable
from actors.settings.config import NatsConfig
from actors.startup.streams import bucket_config, prepare_streams
from actors.wire.nats import Msg
from tests.conftest import MakeNats
from tests.nats_operator import Operator


def connect_and(
    config: NatsConfig, action: Callable[[NatsConnection], object] | None = None, known: set[str] | None = None
) -> object:
    """Open a connection, do something, close it; the one error instead of a group of one."""

    async def main() -> object:
        async with open_nats(config, set() if known is None else known) as connection:
            await connection.request("$JS.API.INFO", timeout_s=5)
            return await action(connection) if action is not None else None  # type: ignore[misc]

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        raise inner from None


def user_seed() -> tuple[str, str]:
    """A user nkey: (seed, public key)."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(seed).public_key.decode()


def test_user_and_password_token_and_nkey_open_the_door_and_wrong_ones_do_not(make_nats: MakeNats) -> None:
    with_user = make_nats(users={"bridge": "s3cret"})
    connect_and(NatsConfig((with_user.url,), user="bridge", password="s3cret"))
    connect_and(NatsConfig((with_user.url.replace("nats://", "nats://bridge:s3cret@"),)))
    for wrong in (NatsConfig((with_user.url,), user="bridge", password="hunter2"), NatsConfig((with_user.url,))):
        with pytest.raises(SinkRefused) as caught:
            connect_and(wrong)
        assert "Authorization Violation" in caught.value.said
        assert "hunter2" not in caught.value.explain()
    with_token = make_nats(token="t0ken")
    connect_and(NatsConfig((with_token.url,), token="t0ken"))
    connect_and(NatsConfig((with_token.url.replace("nats://", "nats://t0ken@"),)))
    seed, public = user_seed()
    with_nkey = make_nats(extra_config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    connect_and(NatsConfig((with_nkey.url,), nkey_seed=seed))
    with pytest.raises(SinkRefused):
        connect_and(NatsConfig((with_nkey.url,), nkey_seed=user_seed()[0]))
    with pytest.raises(SinkRefused, match="NATS_NKEY_SEED"):
        connect_and(NatsConfig((with_nkey.url,), nkey_seed="no seed"))


def test_a_creds_file_opens_an_operators_server(make_nats: MakeNats, tmp_path: Path) -> None:
    operator = Operator()
    server = make_nats(extra_config=operator.config())
    creds = tmp_path / "user.creds"
    creds.write_text(operator.creds())
    connect_and(NatsConfig((server.url,), creds=creds))
    with pytest.raises(SinkRefused):
        connect_and(NatsConfig((server.url,)))
    creds.write_text("nothing")
    with pytest.raises(SinkRefused, match="NATS_CREDS"):
        connect_and(NatsConfig((server.url,), creds=creds))


class Certificates:
    """A certificate authority of the test's own, with a server's and a client's certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self._ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Walbridge test CA")])
        certificate = self._sign(self._ca_name, self._ca_key.public_key(), authority=True)
        self.ca = self._write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
        self.server_cert, self.server_key = self._issue("server")
        self.client_cert, self.client_key = self._issue("client")

    def _issue(self, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = serialization.Encoding.PEM
        certificate = self._write(f"{name}.pem", self._sign(subject, key.public_key()).public_bytes(pem))
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return certificate, self._write(f"{name}.key", private)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._ca_name).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )  # fmt: skip
        return builder.sign(self._ca_key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> str:
        path = self._folder / name
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.parametrize("first", [False, True])
def test_tls_is_checked_both_ways(first: bool, certificates: Certificates, make_nats: MakeNats) -> None:
    c = certificates
    server = make_nats(
        extra_config=f"""
        tls {{ cert_file: "{c.server_cert}", key_file: "{c.server_key}", ca_file: "{c.ca}", verify: true
               {'handshake_first: "900ms"' if first else ""} }}"""
    )
    url = f"tls://localhost:{server.port}"
    good = NatsConfig((url,), ca=c.ca, cert=c.client_cert, key=c.client_key, tls_first=first)
    connect_and(good)
    connect_and(replace(good, urls=(f"nats://localhost:{server.port}",)))
    with pytest.raises(SinkUnavailable):  # the server wants a certificate
        connect_and(replace(good, cert=None, key=None))
    with pytest.raises(SinkUnavailable) as caught:  # nobody vouches for the server
        connect_and(replace(good, ca=None))
    assert "certificate" in caught.value.said.lower()
    with pytest.raises(SinkUnavailable) as caught:  # it is not who it should be
        connect_and(replace(good, urls=(f"tls://127.0.0.1:{server.port}",)))
    assert "certificate" in caught.value.said.lower() or "match" in caught.value.said.lower()
    with pytest.raises(SinkRefused, match="NATS_CA"):
        connect_and(replace(good, ca="/nonexistent/ca.pem"))


def test_a_server_that_greets_before_tls_is_tried_again(certificates: Certificates, make_nats: MakeNats) -> None:
    # One with `handshake_first: auto` does so to whoever is 50 ms late: on a busy machine that must not stop the bridge.
    server = make_nats()
    with pytest.raises(SinkUnavailable) as caught:
        connect_and(NatsConfig((f"tls://localhost:{server.port}",), ca=certificates.ca, tls_first=True))
    assert not isinstance(caught.value, SinkRefused)
    assert "handshake_first" in caught.value.said


def test_the_first_server_that_answers_is_taken(make_nats: MakeNats) -> None:
    server = make_nats()
    dead = f"nats://127.0.0.1:{free_port()}"
    for _ in range(4):
        connect_and(NatsConfig((dead, server.url)))
    with pytest.raises(SinkUnavailable) as caught:
        connect_and(NatsConfig((dead,)))
    assert caught.value.code == "WB200"
    assert "nats-server" in caught.value.fix
    assert "Connection refused" in caught.value.said


def test_a_killed_server_ends_the_connection_at_once(make_nats: MakeNats) -> None:
    server = make_nats()

    async def wait_for_the_end(connection: NatsConnection) -> None:
        server.kill()
        await trio.sleep_forever()

    with pytest.raises(SinkUnavailable) as caught:
        connect_and(NatsConfig((server.url,)), wait_for_the_end)
    assert caught.value.code == "WB201"


def test_a_lame_duck_is_left_in_time(make_nats: MakeNats) -> None:
    server = make_nats()

    async def announce(connection: NatsConnection) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGUSR2)  # nats-server's signal for lame duck mode
        await trio.sleep_forever()

    with pytest.raises(SinkUnavailable) as caught:
        connect_and(NatsConfig((server.url,)), announce)
    assert caught.value.code in ("WB206", "WB201")


def test_a_message_over_max_payload_ends_the_connection_with_the_servers_words(make_nats: MakeNats) -> None:
    server = make_nats(max_payload=4096)

    async def too_much(connection: NatsConnection) -> None:
        assert connection.max_payload == 4096
        await connection.send(b"PUB a 5000\r\n" + b"x" * 5000 + b"\r\n")
        await trio.sleep_forever()

    with pytest.raises(SinkUnavailable) as caught:
        connect_and(NatsConfig((server.url,)), too_much)
    assert "maximum payload" in caught.value.said.lower()


def test_what_the_user_may_not_do_is_said_by_subject(make_nats: MakeNats) -> None:
    server = make_nats(
        extra_config="""
        authorization { users: [ { user: u, password: p,
          permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } } ] }"""
    )

    async def create(connection: NatsConnection) -> None:
        await prepare_streams(JetStream(connection), stream="CDC", mode="auto", replicas=1)

    with pytest.raises(ConfigError) as caught:
        connect_and(NatsConfig((server.url,), user="u", password="p"), create)
    commands = caught.value.fix.splitlines()
    assert [line.split(" --")[0] for line in commands] == [
        "nats kv add bridges", "nats kv add schemas", "nats stream add REQUESTS", "nats stream add CDC", "nats stream add INIT",
    ]  # fmt: skip
    assert "$JS.API.STREAM.CREATE" in caught.value.said


def test_requests_are_answered_concurrently_and_callbacks_see_every_message(make_nats: MakeNats) -> None:
    server = make_nats()
    seen: list[Msg] = []

    async def talk(connection: NatsConnection) -> int:
        await connection.subscribe("echo.*", seen.append)
        js = JetStream(connection)
        await js.create_stream(bucket_config("b", 1).as_dict())
        async with trio.open_nursery() as nursery:
            for i in range(50):
                nursery.start_soon(js.kv_put, "b", f"k{i}", b"v")
                nursery.start_soon(connection.send, b"PUB echo.%d 2\r\nhi\r\n" % i)
        revision = await js.kv_put("b", "k0", b"v2")
        with pytest.raises(JetStreamError) as caught:
            await js.kv_put("b", "k0", b"v3", revision - 1)
        assert caught.value.err_code == 10071
        assert await js.kv_put("b", "k0", b"v3", revision) == revision + 1
        assert [entry.data for entry in await js.kv_history("b", "k0")] == [b"v", b"v2", b"v3"]
        assert await js.kv_get("b", "none") is None
        assert await js.stream_info("NONE") is None
        return len(seen)

    assert connect_and(NatsConfig((server.url,)), talk) == 50


STREAM = {"name": "CDC", "subjects": ["cdc.>"], "storage": "file"}


@pytest.mark.parametrize(
    ("config", "code", "fix"),
    [
        ({"subjects": ["other.>"]}, "WB237", "--subjects='cdc.>'"),
        ({"no_ack": True}, "WB236", "nats stream edit CDC"),
        ({"retention": "workqueue"}, "WB235", "retention"),
        ({"retention": "interest"}, "WB235", "retention"),
        ({"max_msg_size": 1000}, "WB233", "--max-msg-size"),
        ({"persist_mode": "async"}, "WB236", "persist"),
        ({"sealed": True}, "WB236", "sealed"),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_work_is_refused_with_the_mending_command(
    config: dict[str, object], code: str, fix: str, make_nats: MakeNats
) -> None:
    server = make_nats()

    async def prepare(connection: NatsConnection) -> None:
        js = JetStream(connection)
        sealed = {k: v for k, v in config.items() if k != "sealed"}
        await js.create_stream(STREAM | sealed)
        if "sealed" in config:
            await js._api("STREAM.UPDATE.CDC", STREAM | config, "seal")
        await prepare_streams(js, stream="CDC", mode="auto", replicas=1)

    with pytest.raises(ConfigError) as caught:
        connect_and(NatsConfig((server.url,)), prepare)
    assert caught.value.code == code
    assert fix in caught.value.explain()


def test_the_seeds_own_streams_are_taken_as_they_are(make_nats: MakeNats) -> None:
    server = make_nats()

    async def prepare(connection: NatsConnection) -> tuple[object, object]:
        js = JetStream(connection)
        await js.create_stream(
            STREAM | {"retention": "limits", "max_age": 60_000_000_000, "max_msgs": 1_000_000, "max_bytes": 1 << 30}
        )
        await js.create_stream({"name": "INIT", "subjects": ["init.>"], "storage": "file"})
        before = (await js.stream_info("CDC") or {})["config"]
        setup = await prepare_streams(js, stream="CDC", mode="auto", replicas=1)
        assert (setup.mode, setup.publish_prefix, setup.last_seq) == ("plain", b"", 0)
        with pytest.raises(ConfigError, match="fast"):
            await prepare_streams(js, stream="CDC", mode="fast", replicas=1)
        return before, (await js.stream_info("CDC") or {})["config"]

    before, after = connect_and(NatsConfig((server.url,)), prepare)  # type: ignore[misc]
    assert before == after


def test_a_request_that_is_given_up_at_any_moment_leaves_the_connection_in_use(make_nats: MakeNats) -> None:
    """As a browser's tab that is closed gives up the page's questions: others ask over the same connection."""

    async def give_up(connection: NatsConnection, after: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(connection.request, "$JS.API.INFO", timeout_s=5))
            for _ in range(after):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert (await connection.request("$JS.API.INFO", timeout_s=5)).payload

    async def at_any_moment(connection: NatsConnection) -> None:
        for after in range(20):
            for _ in range(5):
                await give_up(connection, after)

    connect_and(NatsConfig((make_nats().url,)), at_any_moment)
