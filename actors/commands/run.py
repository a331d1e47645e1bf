"""`walbridge run`, the default command: the bridge itself.

The command line's own module loads this one for its parameters: what a bridge needs is imported when one is started.
"""

from __future__ import annotations

import os
from typing import Annotated

from actors.errors import ConfigError
from actors.settings.config import EMBEDDED, PRINT_CONFIG, SETTINGS
from actors.settings.describe import origins_table
from actors.settings.flags import EnvFile, Flags, option, takes_settings


@takes_settings(*(name for name, setting in SETTINGS.items() if setting.flag))
def run(
    flags: Flags,
    *,
    embedded: Annotated[str | None, option(EMBEDDED.group, EMBEDDED.help(), EMBEDDED.value)] = None,
    env_file: EnvFile = None,
    print_config: Annotated[bool, option(PRINT_CONFIG.group, PRINT_CONFIG.help())] = False,
) -> int:
    """Stream changes until stopped. The default when no command is given."""
    if embedded is not None and print_config:
        raise ConfigError("WB002", "--print-config: shows the settings for servers of your own; leave out --embedded")
    if embedded is not None:
        from actors.commands.run_embedded import run_embedded  # noqa: PLC0415

        return run_embedded(embedded, flags, env_file)
    from actors.settings.resolve import resolve  # noqa: PLC0415

    config = resolve(flags, os.environ, env_file)
    if print_config:
        print("\n".join(origins_table(config.origins)))
        return 0
    from actors.bridge import run as run_bridge  # noqa: PLC0415
    from actors.telemetry.log import set_up_logging  # noqa: PLC0415

    set_up_logging(config.log.level, config.log.format, config.secrets)
    return run_bridge(config)
