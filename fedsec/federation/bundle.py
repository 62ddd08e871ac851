"""The small folder by which Flower finds apps that are installed with fedsec, or beside it.

Flower takes an app as a bundle of at most 10 MB that holds Python, TOML and text only. The one made here has
no code of its own: it imports two objects. Whatever else they need, data, trust files and keys, they find by
paths that each site sets itself.
"""

from __future__ import annotations

from pathlib import Path

from fedsec import __version__

_MODULE = "fedsec_bundle"

_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "Hands Flower two objects that are installed already"
license = "Apache-2.0"
# Nothing to install: a SuperLink would fetch what stands here from the network.
dependencies = []

[tool.flwr.app]
publisher = "fedsec"

[tool.flwr.app.components]
serverapp = "{module}:server"
clientapp = "{module}:client"

[tool.flwr.app.config]
"""

_CODE = '''"""Written by fedsec: names the apps that are installed on this site."""

from {client_module} import {client} as installed_client
from {server_module} import {server} as installed_server

client = installed_client
server = installed_server
'''


def write_app(folder: Path, name: str, *, client: str, server: str) -> Path:
    """Write an app folder that ``flwr run`` takes.

    Args:
        folder: Made when missing.
        name: The app's name: lower-case letters, digits and hyphens.
        client: Where the ClientApp is, as ``package.module:attribute``.
        server: Where the ServerApp is.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    client_module, _, client_name = client.partition(":")
    server_module, _, server_name = server.partition(":")
    (folder / "pyproject.toml").write_text(
        _PROJECT.format(name=name, version=__version__, module=_MODULE), encoding="utf-8"
    )
    (folder / f"{_MODULE}.py").write_text(
        _CODE.format(
            client_module=client_module, client=client_name, server_module=server_module, server=server_name
        ),
        encoding="utf-8",
    )
    (folder / "README.md").write_text(f"# {name}\n\nMade by fedsec; nothing here needs editing.\n")
    return folder
