"""What both clients share: everything but the waiting.

What takes calls whose answers are needed to go on is a flow: a generator that yields each call to make, is
sent its answer, or gets the CallError, and returns what the user asked for. `Client` runs flows,
`AsyncClient` awaits them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from transformer_debugger.v1 import model_service_pb2 as model_pb2
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.call_pb2 import Priority
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tdb_client import decoding, encoding
from tdb_client.ablation_effects import whole_request
from tdb_client.call_splitting import Share, in_other_words, shares
from tdb_client.chat import Chat, chat_prompt, messages
from tdb_client.circuit_search import CircuitQuestion
from tdb_client.compatibility import CHECK_SECONDS, VersionCheck
from tdb_client.connection import Connection, Tls, default_server
from tdb_client.debug_result import DebugResult, debug_result, with_notes
from tdb_client.edges import Edges, EdgesSubRequest, edges
from tdb_client.errors import (
    CallError,
    ChatTemplateError,
    NodeError,
    ResourceExhaustedError,
    ResponseError,
)
from tdb_client.events import Event, Started, inference_results
from tdb_client.health import HealthStatus, health_check, health_request, health_status
from tdb_client.inference import InferenceSubRequest, Loss, as_texts
from tdb_client.interventions import AblationWords, ablations
from tdb_client.model_info import Limits, ModelInfo, model_info
from tdb_client.names import enum_name, enum_value
from tdb_client.older_servers import check_compared, check_knows_circuits, has_comparison, knows_circuits
from tdb_client.requests import (
    AnySubRequest,
    DebugSubRequest,
    PromptKey,
    SubRequest,
    SubRequestT,
    prompt_length,
    prompts_to_tokenize,
    resolve,
)
from tdb_client.results import EstimatedCost, PromptTokens
from tdb_client.streams import EventReader
from tdb_client.token_counting import TokenCounting
from tdb_client.value_check import check_text, check_values

if TYPE_CHECKING:
    from tdb_client.workbench.local_server import Workbench

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """A call to make: a method of a channel, of either kind, and what to send."""

    method: Any
    request: Any


Flow = Generator[Call, Any, Result]


class ClientCore:
    """Makes requests and reads answers; arguments are those of `Client`."""

    _open: ClassVar[Any]
    """Opens a channel, sync or async, to where a Connection leads."""

    def __init__(
        self,
        server: str | None = None,
        *,
        timeout: float | None = 120.0,
        tls: Tls | None = None,
        token: str | None = None,
        max_receive_bytes: int | None = None,
        priority: str = "interactive",
        channel: Any = None,
    ) -> None:
        self._priority = enum_value(Priority, priority)
        self._connection = Connection(server or default_server(), tls, token, timeout, max_receive_bytes)
        self._channel = self._open(self._connection) if channel is None else channel
        self._debugger: Any = TransformerDebuggerServiceStub(self._channel)
        self._models: Any = ModelServiceStub(self._channel)
        self._versions = VersionCheck(self._connection.server)
        self._counting = TokenCounting()
        self._described: dict[str, ModelInfo] = {}

    def workbench(self, *, port: int = 0, show: bool = True) -> Workbench:
        """Opens a page that asks this client's server by clicking: in a notebook, or in the web browser.

        This program hands it out, on this machine alone, until it ends or the workbench is closed, and
        reaches the server as this client does. A server with an HTTP port has the same page itself.

        Example:
            client.workbench()

        Args:
            port: of this machine; 0 for any that is free. Name one to lead it here from elsewhere (`ssh -L`).
            show: whether to show the page at once; else `address` says where it is.

        Raises:
            OSError: the port cannot be had.
        """
        from tdb_client.workbench.local_server import Workbench

        opened = Workbench(self._connection, enum_name(Priority, self._priority), port)
        if show:
            opened.show()
        return opened

    def _with(self, timeout: float | None) -> dict[str, Any]:
        """The arguments of a call beside its request: its timeout and metadata."""
        return {"timeout": self._connection.seconds(timeout), "metadata": self._connection.metadata()}

    def _debug_call(self, sub_requests: Sequence[DebugSubRequest], request_id: str) -> Flow[Call]:
        """The call that streams debug results."""
        resolved = yield from self._resolved(sub_requests)
        request = encoding.debug_request(resolved, request_id=request_id, priority=self._priority)
        return Call(self._debugger.StreamDebug, request)

    def _infer_call(self, sub_requests: Sequence[InferenceSubRequest], request_id: str) -> Flow[Call]:
        """The call that streams the results of general sub-requests."""
        resolved = yield from self._resolved(sub_requests)
        request = encoding.infer_request(resolved, request_id=request_id, priority=self._priority)
        return Call(self._debugger.StreamInfer, request)

    def _edges_call(self, sub_requests: Sequence[EdgesSubRequest], request_id: str) -> Flow[Call]:
        """The call that streams edges. They name no tokens, so that nothing has to be asked before."""
        check_values(list(sub_requests), "sub_requests")
        yield from ()
        request = encoding.edges_request(sub_requests, request_id=request_id, priority=self._priority)
        return Call(self._debugger.StreamInferEdges, request)

    def _debug_shares(self, sub_requests: Sequence[DebugSubRequest]) -> Flow[list[Share]]:
        """Which sub-requests go in which call: those of one prompt in the same."""
        check_values(list(sub_requests), "sub_requests")
        families: dict[PromptKey, list[int]] = {}
        for number, one in enumerate(sub_requests):
            families.setdefault((one.prompt, one.add_bos), []).append(number)
        if len(sub_requests) <= 1:
            return [Share(tuple(map(tuple, families.values())))]
        n_tokens = {}
        if len(families) > 1:
            n_tokens = yield from self._n_tokens(list(families), sub_requests)
        sizes = [encoding.debug_request([one]).ByteSize() for one in sub_requests]
        lengths = [n_tokens.get(key, 0) for key in families]
        return shares([tuple(one) for one in families.values()], lengths, sizes, (yield from self._limits()))

    def _ablation_requests(
        self,
        prompt: str,
        loss: Loss,
        nodes: AblationWords | Sequence[AblationWords],
        add_bos: bool | None,
        baseline: str | Sequence[Any],
    ) -> Flow[InferenceSubRequest]:
        """The nodes with their tokens counted from the start, all in one sub-request to be taken apart."""
        whole = whole_request(prompt, loss, ablations(nodes), add_bos, as_texts(baseline, "baseline"))
        try:
            (resolved,) = yield from self._resolved([whole])
        except NodeError as error:
            raise NodeError(str(error), error.path.replace("ablate", "nodes")) from None
        return resolved

    def _infer_shares(self, sub_requests: Sequence[InferenceSubRequest]) -> Flow[list[Share]]:
        """Which sub-requests of one prompt go in which call, where none needs to share with another."""
        sizes = [encoding.infer_request([one]).ByteSize() for one in sub_requests]
        limits = None if len(sizes) == 1 else (yield from self._limits())
        return shares([(number,) for number in range(len(sizes))], [0] * len(sizes), sizes, limits)

    def _limits(self) -> Flow[Limits | None]:
        """The server's limits, asked for once; None where it does not say them."""
        if not self._described:
            with suppress(CallError):  # what comes next says what is wrong
                yield from self._model_info()
        return self._known_limits

    @property
    def _known_limits(self) -> Limits | None:
        return next((one.limits for one in reversed(self._described.values())), None)

    def _estimated(self, sub_requests: Sequence[AnySubRequest]) -> Flow[EstimatedCost]:
        of_edges = [one for one in sub_requests if isinstance(one, EdgesSubRequest)]
        others = [one for one in sub_requests if not isinstance(one, EdgesSubRequest)]
        resolved = yield from self._resolved(others)
        check_values(of_edges, "sub_requests")
        request = encoding.estimate_request([*resolved, *of_edges])
        method = self._debugger.Debug
        if isinstance(request, service_pb2.InferRequest):
            method = self._debugger.Infer
        elif isinstance(request, service_pb2.InferEdgesRequest):
            method = self._debugger.InferEdges
        response = yield Call(method, request)
        return decoding.estimated_cost(response.estimated_cost)

    def _circuit_size(self, question: CircuitQuestion) -> Flow[tuple[ModelInfo, int]]:
        """The model, and how many circuits the server measures in one call: as many as its memory allows."""
        model = yield from self._model_info()
        yield from self._estimated([question.run()])  # what is wrong with it is said once, not for each
        n_per_call = model.limits.max_sub_requests
        while n_per_call > 1:
            try:
                yield from self._estimated([question.run(())] * n_per_call)
                break
            except ResourceExhaustedError:
                n_per_call //= 2
        return model, n_per_call

    def _model_info(self) -> Flow[ModelInfo]:
        response = yield Call(self._models.GetModelInfo, model_pb2.GetModelInfoRequest())
        model = self._described_by(response)
        if self._versions.take_turn():
            self._versions.compare(model.api_version)
        return model

    def _described_by(self, response: model_pb2.GetModelInfoResponse) -> ModelInfo:
        """The model in an answer, kept by its digest for the labels of latents."""
        model = model_info(response.model_info)
        self._described[model.digest] = model
        return model

    def _debug_results(
        self, sub_requests: Sequence[DebugSubRequest], events: Sequence[Event]
    ) -> Flow[list[DebugResult]]:
        """What a whole stream says about every debug sub-request, with labels and links of its latents.

        They come with the description of the model, which is mostly known by now: it is asked for once,
        beside the first call, and once more only where there are latents. An answer without it is better than
        none, so that failing is no error.
        """
        answers = inference_results(events)
        results = [debug_result(*one) for one in zip(sub_requests, answers, strict=True)]
        with_latents = {
            one.call.model_digest for one in results if any(node.is_latent for node in one.nodes.nodes)
        }
        if with_latents - self._described.keys():
            with suppress(CallError):
                yield from self._model_info()
        models = [self._described.get(one.call.model_digest) for one in results]
        return [
            one if model is None else with_notes(one, model)
            for one, model in zip(results, models, strict=True)
        ]

    def _edges_results(
        self, sub_requests: Sequence[EdgesSubRequest], events: Sequence[Event]
    ) -> Flow[list[Edges]]:
        """What a whole stream says about edges, with the model's width, which some files of them need."""
        answers = inference_results(events)
        if any(one.call.model_digest not in self._described for one in answers):
            with suppress(CallError):
                yield from self._model_info()
        return [
            edges(request, answer, self._described.get(answer.call.model_digest))
            for request, answer in zip(sub_requests, answers, strict=True)
        ]

    def _chat_prompt(self, chat: Chat, system: str | None) -> Flow[str]:
        spoken = messages(chat, system)
        model = yield from self._model_info()
        if model.chat_template is None:
            raise ChatTemplateError(
                f"{model.name} has no chat template, or its server, version {model.server_version},"
                " is too old to send it"
            )
        return chat_prompt(model.chat_template, spoken)

    def _tokenized(self, text: str, add_bos: bool | None) -> Flow[PromptTokens]:
        tokens = yield from self._tokens(text, add_bos)
        self._counting.showed(text, tokens)
        return tokens

    def _tokens(self, text: str, add_bos: bool | None) -> Flow[PromptTokens]:
        check_text(text, "text")
        request = model_pb2.TokenizeRequest(text=text, add_bos=add_bos)
        return decoding.prompt_tokens((yield Call(self._models.Tokenize, request)))

    def _detokenized(self, token_ids: Sequence[int], add_bos: bool | None) -> Flow[str]:
        check_values(list(token_ids), "token_ids")
        request = model_pb2.DetokenizeRequest(token_ids=token_ids, add_bos=add_bos)
        text: str = (yield Call(self._models.Detokenize, request)).text
        return text

    def _health(self, service: str) -> Flow[HealthStatus]:
        check_text(service, "service")
        return health_status((yield Call(health_check(self._channel), health_request(service))))

    def _resolved(self, sub_requests: Sequence[SubRequestT]) -> Flow[list[SubRequestT]]:
        """The sub-requests with tokens counted from the start; asks for the prompts' lengths where needed."""
        check_values(list(sub_requests), "sub_requests")
        yield from self._check_server_knows(sub_requests)
        n_tokens = yield from self._n_tokens(prompts_to_tokenize(sub_requests), sub_requests)
        return [resolve(one, n_tokens) for one in sub_requests]

    def _n_tokens(
        self, prompts: Sequence[PromptKey], sub_requests: Sequence[SubRequest]
    ) -> Flow[dict[PromptKey, int]]:
        """How many tokens each prompt has; an error names the sub-request that asks for it."""
        n_tokens = {}
        for key in prompts:
            try:
                tokens = yield from self._tokens(*key)
            except CallError as error:
                number = [(one.prompt, one.add_bos) for one in sub_requests].index(key)
                path = f"sub_requests[{number}].prompt"
                raise in_other_words(error, lambda text: path if text == "text" else text) from None  # noqa: B023
            n_tokens[key] = prompt_length(tokens, key[1])
        return n_tokens

    def _check_server_knows(self, sub_requests: Sequence[SubRequest]) -> Flow[None]:
        """Refuses what the server would skip unread; asks it for its limits at most once.

        Raises:
            OlderServerError: it would.
        """
        if any(map(has_comparison, sub_requests)) and not any(map(knows_circuits, self._described.values())):
            check_knows_circuits((yield from self._model_info()))

    def _read(
        self, reader: EventReader, message: Any, sub_requests: Sequence[AnySubRequest]
    ) -> Iterator[Event]:
        """The events of one message of a stream."""
        # Servers that do not know of edges have no call for them.
        of_nodes = [one for one in sub_requests if not isinstance(one, EdgesSubRequest)]
        for event in reader.read(message):
            if of_nodes and isinstance(event, Started):
                _check_backward_rules(event, of_nodes)
            if of_nodes:
                check_compared(event, of_nodes)
            self._counting.look_at(event, sub_requests)
            yield event

    def _ask_for_version(self, get_model_info: Callable[..., Any]) -> Any:
        """Asks beside a running call, only the first time; None after that."""
        if not self._versions.take_turn():
            return None
        metadata = self._connection.metadata()
        return get_model_info(model_pb2.GetModelInfoRequest(), timeout=CHECK_SECONDS, metadata=metadata)


def _check_backward_rules(started: Started, sub_requests: Sequence[SubRequest]) -> None:
    """An older server does not see that a rule is asked for, and would answer with other numbers.

    Raises:
        ResponseError: it goes back by another rule.
    """
    pairs = zip(sub_requests, started.backward_rules, strict=True)
    for index, (sub_request, applied) in enumerate(pairs):
        requested = sub_request.backward_rule
        if requested.lower() != applied:
            raise ResponseError(
                f"sub-request {index} asks for the backward rule {requested}, and the server takes"
                f" {applied}: it may be too old"
            )
