"""The server that the conformance programs run against, once for all of them."""

from collections.abc import Iterator

import pytest

from support.servers import chosen_server


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chosen_server(tmp_path_factory.mktemp("conformance")) as address:
        yield address
