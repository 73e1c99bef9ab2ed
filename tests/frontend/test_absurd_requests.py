"""Every handler, asked with one field changed: it refuses by a status, and never because it met a defect.

History and matching are fakes here; `tests/mutations` asks a whole server.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from everfold.frontend.calls import OPERATOR_SERVICE, WORKFLOW_SERVICE
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.namespaces import Namespace
from everfold.visibility.store import open_visibility
from frontend.fakes import Frontend, run
from mutations import corpus
from mutations.caller import PARSED
from mutations.mutator import mutate

NAMESPACES = [
    Namespace(
        namespace_id=f"7b4f1d6e-0000-4000-8000-00000000000{number}",
        name=name,
        retention_ns=86_400 * 10**9,
        search_attributes=dict(corpus.ATTRIBUTES),
    )
    for number, name in enumerate((corpus.HIT, corpus.VICTIM))
]


def test_every_handler_answers_whatever_it_is_asked(tmp_path: Path) -> None:
    random = Random(7)
    world = corpus.World(random)
    index = open_visibility(f"sqlite:///{tmp_path}/index.db")

    async def scenario(frontend: Frontend) -> None:
        for method in sorted(corpus.MADE) * 8:
            service = corpus.METHODS[method].containing_service.full_name
            assert service in (WORKFLOW_SERVICE, OPERATOR_SERVICE)
            context = frontend.context(method, 0.05, service)
            data, mutation = mutate(random, corpus.request(method, world))
            try:
                await frontend.server.handlers[context.method](context, data)
            except StatusError as refused:
                if refused.code == Code.INTERNAL and not refused.message.startswith(PARSED):
                    raise AssertionError(f"{mutation}: {refused}") from None
                refused.message.encode()

    run(scenario, *NAMESPACES, visibility=index)
    index.close()
