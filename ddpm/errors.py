"""The errors a user can act on."""


class UserError(Exception):
    """Wrong input: a key, a file, a request. The message is one line in the user's words.

    It says which key or file it is about, what was found and what is expected. The command line prints it
    without a traceback and leaves with exit code 2; a scheduler must not retry it.
    """

    exit_code = 2


class UpstreamError(Exception):
    """Something outside failed (a download, a server): the same command may well succeed later. Exit code 75."""

    exit_code = 75


class Interrupted(Exception):
    """Stopped on request, with everything needed to continue saved. Exit code 130, as a shell expects of Ctrl-C."""

    exit_code = 130
