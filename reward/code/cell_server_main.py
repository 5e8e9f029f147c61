"""The program of a sandbox's server process, run as `python -S -s -P cell_server_main.py SETTINGS`.

Started by path, without `site` and without the `__init__` of the packages above: each page the server holds is paid for
again at every fork, and what it has not imported no candidate can find in its memory.
"""

import json
import os
import sys
import types


def _start_server() -> None:
    """Imports the sandbox server without the packages' `__init__` and runs it, or reports the isolation layers."""
    settings = json.loads(sys.argv[1])
    sys.argv = ["main.py"]
    for name, folder in (("qwen_align", ""), ("qwen_align.reward", "/reward")):
        package = types.ModuleType(name)
        package.__path__ = [settings["package"] + folder]
        sys.modules[name] = package
    if settings["isolation"] == "probe":
        from qwen_align.reward.code.isolation_layers import report_layers

        report_layers()
    # What `random` and `threading` would do in each forked cell costs a third of it, and cells need neither: they
    # seed `random` themselves, and the server, which has one thread, holds none of the locks to be made anew.
    register_at_fork = os.register_at_fork
    os.register_at_fork = lambda **_: None
    from qwen_align.reward.code.cell_server import preload_modules, serve_jobs

    preload_modules()
    os.register_at_fork = register_at_fork
    serve_jobs(settings)


if __name__ == "__main__":
    _start_server()
