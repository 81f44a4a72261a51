"""Imports tutelage once and forks a command line for every request on stdin: a process as a user starts it, with its
own signals, group and exit code, without seconds of imports each time. One JSON object a line, in and out."""

import json
import os
import signal
import sys
import traceback


def child(request):
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for handle, file in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["tutelage", *request["words"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve():
    for line in sys.stdin:
        request = json.loads(line)
        if "words" in request:
            pid = os.fork()
            if not pid:
                child(request)
            answer = {"pid": pid}
        else:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        os.write(reply, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    import importlib

    from tutelage.cli import main
    from tutelage.pipeline.stages import STAGES

    for stage in STAGES:
        importlib.import_module(f"tutelage.stages.{stage}")
    reply = os.dup(1)
    os.write(reply, b'"ready"\n')
    serve()
