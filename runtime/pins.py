"""Flower's private parts that this project rests on, held by their sources: an upgrade cannot change one unseen.

After an upgrade: read again what `changed` names, mend what rests on it, and add its fingerprint and the version.
"""

import hashlib
import inspect
from pkgutil import resolve_name

VERSIONS = ("1.41.0", "1.42.0")
"""Versions of Flower of which every one of the pins was read."""

PINS: dict[str, dict[str, tuple[str, str]]] = {
    "flwr.supernode.start_client_internal": {
        "_pull_and_store_message": (
            "eaf5d0e36dc34e4c",
            "takes a message in: the SuperNode's guard stands in its place",
        ),
        "_insert_message": ("a0c6f4605e993f04", "takes in the refusal that the guard answers with"),
        "_push_messages": ("00bb86faffdec114", "sends that refusal as any reply"),
        "start_client_internal": (
            "9e89a6eb68fbec68",
            "calls the guard once for each message, and pauses where there was none",
        ),
    },
    "flwr.supernode.cli.flower_supernode": {
        "flower_supernode": (
            "e263e10452076b00",
            "runs the SuperNode in this process, and comes back only when it gave up",
        ),
    },
    "flwr.supernode.runtime.run_clientapp": {
        "run_clientapp": ("6ce09559f3a2f5dc", "runs the app that was approved, from where its hash leads"),
    },
    "flwr.supercore.superexec.executor.subprocess_executor": {
        "SubprocessExecutor.launch": ("83abf3dbe02281fd", "starts an app: a fork stands in its place"),
    },
    "flwr.supernode.cli.flwr_clientapp": {
        "flwr_clientapp": ("9e02b412fb895b05", "what such a fork runs"),
    },
    "flwr.supercore.cli.flower_superexec": {
        "flower_superexec": ("f0e2725c92a57597", "runs the SuperExec in this process"),
    },
    "flwr.supercore.superexec.run_superexec": {
        "run_superexec": ("d11f4e7fbc8f0b12 91e7a33c5b898f33", "starts apps by the executor alone, one for each task"),
    },
    "flwr.supercore.superexec.plugin.base_exec_plugin": {
        "BaseExecPlugin.launch_task": ("c968cd3f4e0cdd07", "hands the executor what an app's arguments are made of"),
    },
    "flwr.cli.install": {
        "install_from_fab": ("481bd04cde582322", "unpacks an app only after the guard saw it"),
        "validate_and_install": ("628b69fb852ae858", "names the folder of an app by its id, version and hash"),
    },
    "flwr.common.config": {
        "get_project_dir": ("155c70517e73e598", "looks for an app in that folder"),
    },
    "flwr.supercore.protobuf.client": {
        "ProtobufClient.__init__": ("ea57554c6ab40501", "takes proxies from the environment, which is set around it"),
    },
    "flwr.supercore.error.http": {
        "http_error_translator": (
            "63e39a121204a42b",
            "answers for the SuperLink's errors: one that says to try again stands before it",
        ),
    },
    "flwr.superlink.main": {
        "_get_middleware": ("acdbc2dce1520f8f 911d5e2a5aaf11ec", "looks that answer up by its name"),
        "create_app": ("ee966b630c8ba8b5", "makes the SuperLink's app of it"),
    },
    "flwr.superlink.cli.flower_superlink": {
        "flower_superlink": ("398ce9c85755e9ee", "runs the SuperLink in this process"),
        "_run_superlink_http_api": ("eb0d78b85f999576", "serves the app from this process"),
    },
    "flwr.supercore.sql_mixin": {
        "_set_sqlite_pragmas": ("6cf87a44250ef3c4", "reads the settings of the database, of which one is added"),
    },
    "flwr.supercore.corestate.sql_corestate": {
        "SqlCoreState.store_object": (
            "903590e226814f4a",
            "swallows an error of the database, which is noted on its way",
        ),
    },
    "flwr.superlink.servicer.fleet.fleet_handlers": {
        "pull_messages": ("5f1d8861a9eb1465", "is made one transaction"),
        "push_object": ("df7e96f1188e0a40", "is made one transaction"),
    },
    "flwr.superlink.servicer.runtime.runtime_handlers": {
        "pull_messages": ("8c998d6d197c09e4", "is made one transaction"),
        "push_object": ("b2f9c8ea398e9778", "is made one transaction"),
    },
    "flwr.supercore.retry.http_retry": {
        "make_simple_http_retry_invoker": ("49e12326a4b17e26", "tries again after a 503"),
    },
    "flwr.superlink.grid.http_grid": {
        "HttpGrid.pull_messages": (
            "67a5266a5a2ed515",
            "is called by several threads, and returns when a reply is whole or the grid closed",
        ),
    },
    "flwr.supercore.inflatable.inflatable_utils": {
        "pull_objects": ("31bb2de46b450e6a", "fetches a reply's parts, and ends when the grid is closed"),
    },
}
"""Module → name there → first 16 digits of the SHA-256 of every source that was read, with blanks between, and what it
does that something here rests on."""


def changed() -> dict[str, str]:
    """Return each private function whose source nobody read, as MODULE:NAME, with the fingerprint that it has now."""
    found = {f"{module}:{name}": pin for module, named in PINS.items() for name, pin in named.items()}
    return {name: now for name, (read, _) in found.items() if (now := _fingerprint(name)) not in read.split()}


def _fingerprint(name: str) -> str:
    return hashlib.sha256(inspect.getsource(resolve_name(name)).encode()).hexdigest()[:16]
