"""PostgresMirror does what every mirror does."""

from tests.mirrors.contract import MirrorContract


class TestPostgresMirror(MirrorContract):
    pass
