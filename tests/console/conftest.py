from tests.worker.conftest import journal, pytest_asyncio_loop_factories

__all__ = ["journal", "pytest_asyncio_loop_factories"]
