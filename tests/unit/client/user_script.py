"""What somebody might write: every kind of call, with the types that the package promises. Never run."""

import asyncio
from contextlib import closing

import numpy as np
import numpy.typing as npt
from tdb_client import (
    Ablation,
    AsyncClient,
    CallError,
    Client,
    DebugResult,
    DebugSubRequest,
    Event,
    InferenceSubRequest,
    MultipleTopKResult,
    MultipleTopKSpec,
    Node,
    ResultReady,
    Tls,
    Trace,
    head,
    latent,
    neuron,
)


def tell(event: Event) -> None:
    if isinstance(event, ResultReady):
        print(event.name)


def explain(prompt: str) -> DebugResult:
    with Client("127.0.0.1:50051", tls=Tls(ca_file="ca.pem"), token="secret") as client:
        plain = client.debug(prompt, " Mary", [" John"], on_event=tell)
        client.debug(prompt, " Mary", ablate=head(9, 6, token=-1))
        client.debug(prompt, " Mary", ablate=[head(9, 6, token=-1), "L5 neuron 1 @ 7 = 2.5"])
        client.debug(prompt, " Mary", ablate=[Ablation(neuron(5, 1, token=7), 2.5)])
        client.debug(prompt, trace=neuron(20, 426, token=-1))
        looks_back = Trace(head(9, 6, token=3, attended_to=2), "V")
        client.debug(prompt, " Mary", trace=looks_back, downstream=latent(9, 1, token=3))
        neurons = MultipleTopKSpec({"act_times_grad": ["mlp_act_times_grad"]})
        results = client.infer([InferenceSubRequest(prompt, results={"neurons": neurons})])
        top = results[0].results["neurons"]
        if isinstance(top, MultipleTopKResult):
            nodes: tuple[Node, ...] = top.nodes
            print(nodes)
        with closing(client.stream_debug([DebugSubRequest.of(prompt, " Mary")])) as events:
            for event in events:
                tell(event)
        effects = client.ablate_each(
            prompt, " Mary", " John", [head(9, 6, token=-1), "L5 neuron 1 @ 7 = 2.5"]
        )
        changes: npt.NDArray[np.float64] = effects.change
        print(changes, effects.ablations[0].node, effects.to_frame())
        effect: npt.NDArray[np.floating] = plain.nodes.direct_effect
        loss: float | None = plain.loss
        page: str = plain.to_html(before=plain)
        print(effect.sum(), loss, page, plain.to_frame(), client.model_info().n_layers)
        return plain


async def explain_all(prompts: list[str]) -> list[DebugResult]:
    async with AsyncClient() as client:
        try:
            return await asyncio.gather(*(client.debug(prompt, " Mary") for prompt in prompts))
        except CallError as error:
            seconds: float | None = error.retry_after
            print(error.reason, seconds)
            return []
