"""`tether label`: the labeling server, with everything that an administrator sees."""

from tether.feedback.arguments import ProjectFile
from tether.web.agreement import EXPORTS, summary
from tether.web.app import serve


def label(
    project: ProjectFile,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    name: str = "",
    hosts: tuple[str, ...] = (),
    https: bool = False,
) -> None:
    """Serve the page on which people judge, and beside it the administrator's, /admin.

    On this machine alone (the default) whoever opens the page labels. For others name another
    host, and invite them: tether feedback invite PROJECT.db NAME.

    Args:
        project: What `tether feedback import` made.
        host: Address to listen on; 0.0.0.0 for every one of this machine.
        port: Port to listen on.
        name: Under which whoever sits here labels; "" = the login name.
        hosts: Names under which people reach it, such as labels.example.org.
        https: It stands behind a server with a certificate: cookies go over https alone.
    """
    serve(project, host, port, name, hosts=hosts, https=https, summary=summary, exports=EXPORTS)
