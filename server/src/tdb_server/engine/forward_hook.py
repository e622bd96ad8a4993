"""The hook of a forward pass: sets what the plan sets, and keeps what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.engine.interventions import (
    PAIR_HOOK_POINTS,
    Baseline,
    Intervention,
    set_gradients,
    set_values,
)
from tdb_server.engine.latents import splice
from tdb_server.engine.plan import Plan
from tdb_server.engine.planned_interventions import latent_interventions
from tdb_server.engine.references import References
from tdb_server.engine.shared_beginnings import Beginnings, layer_of
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.engine.streams import Stream
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.backward_rules import BackwardRules
from tdb_server.model.hooks import HookSite
from tdb_server.model.mlp_inputs import MlpInputs

CONTRIBUTION_FACTORS = (HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V)
"""What a head reads from one token is the product of these, attention and value."""


class ForwardHook:
    """The hook of a forward pass.

    Attributes:
        values: by hook point that is kept, of each layer in order [B, ...].
        read: by dictionary's site and layer, what it reads [B, T, s].
        graph_sites: tensors of the graph whose gradients are wanted,
        site_outputs: those of dictionaries' sites behind the splice, and
        streams: those that objectives start from.
    """

    def __init__(
        self,
        plan: Plan,
        model: SplicedModel,
        references: References | None,
        rules: BackwardRules | None,
        beginnings: Beginnings | None,
        check_cancelled: Callable[[], None],
    ) -> None:
        self._plan, self._model, self._check_cancelled = plan, model, check_cancelled
        self._references, self._beginnings = references, beginnings
        self._contribution_factors: dict[HookPoint, Tensor] = {}
        self.values: dict[HookPoint, list[Tensor]] = {}
        self.graph_sites: dict[HookSite, Tensor] = {}
        self.streams: dict[Stream, Tensor] = {}
        self.read: dict[tuple[Site, int], Tensor] = {}
        self._mlp_inputs = MlpInputs(model.decoder, rules)
        self.site_outputs: dict[tuple[Site, int], Tensor] = {}
        self._past_objective: set[int] = set()
        """Rows whose objective starts from a point before this one. Their gradient is zero here, but the way
        back runs over the whole batch: a gradient that is set here would flow into them. So none is."""

    def __call__(self, hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        """See `Hooks`. What is set here is kept as set, and dictionaries read it."""
        site = hook_point, layer_index
        if hook_point is HookPoint.RESID_POST_MLP:
            self._stop_if_cancelled(x)
        interventions = self._placed(self._plan.interventions.get(site, ()), site)
        hidden_cells = self._hidden_cells(site) if interventions else None
        x = self._set_values(x, [one for one in interventions if one.is_forward], hidden_cells, site)
        self._keep(x, site)
        # Objectives that start here have the gradient that is set here, those before it have none.
        backward = [one for one in interventions if _sets_gradient(one, self._past_objective)]
        x = set_gradients(x, backward, hidden_cells)
        past_dictionary = self._pass_objectives(x, site)
        for autoencoder in self._model.autoencoders:
            if autoencoder.site.hook_point is hook_point and layer_index in autoencoder.layers:
                x = self._splice(autoencoder, layer_index, x, past_dictionary)
        self._keep_stream(Stream(*site), x)
        if self._beginnings is not None and hook_point is HookPoint.RESID_POST_MLP:
            source = self._beginnings.parting.get(layer_index or 0)
            x = x if source is None else x[source]
        self._mlp_inputs.see(hook_point, x)
        return x

    def _stop_if_cancelled(self, x: Tensor) -> None:
        """On the way forward, and at the same layer on the way back."""
        check_cancelled = self._check_cancelled
        check_cancelled()
        if x.requires_grad:
            # Not through `self`, which holds the graph: a cycle across autograd is never collected.
            x.register_hook(lambda _: check_cancelled())  # type: ignore[no-untyped-call]

    def _hidden_cells(self, site: HookSite) -> Tensor | None:
        """The cells of token pairs that the attention's mask hides from a layer, where a site has pairs."""
        hook_point, layer_index = site
        if hook_point not in PAIR_HOOK_POINTS:
            return None
        assert layer_index is not None
        return self._model.decoder.hidden_cells(self._plan.n_tokens, (layer_index,))[0]

    def _set_values(
        self, x: Tensor, forward: Sequence[Intervention], hidden_cells: Tensor | None, site: HookSite
    ) -> Tensor:
        x = self._set_contributions(x, [one for one in forward if one.is_of_contribution])
        whole_cells = [one for one in forward if not one.is_of_contribution]
        return set_values(x, whole_cells, hidden_cells, self._baseline(site))

    def _keep(self, x: Tensor, site: HookSite) -> None:
        hook_point, kept = site[0], self._plan.kept
        if hook_point in CONTRIBUTION_FACTORS:
            self._contribution_factors[hook_point] = x
        if hook_point in kept.values:  # the forward pass comes by layers in order
            self.values.setdefault(hook_point, []).append(self._of_all_rows(x, site).detach())
        if hook_point in kept.gradients or site == self._model.last_residual:
            self.graph_sites[site] = x

    def _pass_objectives(self, x: Tensor, site: HookSite) -> set[int]:
        """Notes the rows whose objective starts here; returns those that see nothing set in a dictionary."""
        starts_before_dictionary = self._keep_stream(Stream(*site, is_behind_dictionary=False), x)
        past_dictionary = self._past_objective | starts_before_dictionary
        self._past_objective = past_dictionary | self._plan.objective_streams.get(Stream(*site), set())
        return past_dictionary

    def _baselines_of(self, place: int, site: HookSite) -> tuple[int, ...]:
        """The baselines of the row that stands at a place among those that are run."""
        if self._beginnings is not None:
            place = int(self._beginnings.running[self._layer(site)][place])
        return self._plan.rows[place].baselines

    def _baseline(self, site: HookSite) -> Baseline | None:
        """What rows' cells are in their baseline prompts."""
        references = self._references
        if references is None:
            return None
        return lambda place: references.values(self._baselines_of(place, site), *site)

    def _set_contributions(self, x: Tensor, interventions: Sequence[Intervention]) -> Tensor:
        """Sets what heads read from one token [B, H, T, e] to what they read from it in baselines."""
        if not interventions:
            return x
        assert self._references is not None
        x = x.clone()
        for one in dict.fromkeys(interventions):  # the same twice is set once
            (query, head, _), key = one.ablation.index.tensor_indices, one.ablation.attended_to_token
            layer_index = one.ablation.index.layer_index
            assert query is not None
            assert head is not None
            assert key is not None
            assert layer_index is not None
            group = head // self._model.decoder.config.n_heads_per_group
            probs, values = (self._contribution_factors[at] for at in CONTRIBUTION_FACTORS)
            contribution = probs[one.row, head, query, key] * values[one.row, group, key]
            baselines = self._baselines_of(one.row, (HookPoint.ATTN_V_OUT, layer_index))
            of_baselines = self._references.contribution(baselines, layer_index, query, key, head, group)
            x[one.row, head, query] += of_baselines.to(x.dtype) - contribution
        return x

    def _layer(self, site: HookSite) -> int:
        return layer_of(site, self._plan.n_layers)

    def _of_all_rows(self, x: Tensor, site: HookSite) -> Tensor:
        """What a hook point has of the rows that are run, for all rows of the batch."""
        return x if self._beginnings is None else x[self._beginnings.places[self._layer(site)]]

    def _placed(self, interventions: Sequence[Intervention], site: HookSite) -> Sequence[Intervention]:
        """Interventions of the rows that are run, at their places among these."""
        if self._beginnings is None or not interventions:
            return interventions
        place_of = {int(row): at for at, row in enumerate(self._beginnings.running[self._layer(site)])}
        return [
            replace(one, row=place_of[one.row])
            for one in interventions
            if one.is_forward and one.row in place_of
        ]

    def _keep_stream(self, stream: Stream, x: Tensor) -> set[int]:
        """The rows whose objective starts from a stream, which is kept for them."""
        found = self._plan.objective_streams.get(stream)
        if found is None:
            return set()
        self.streams[stream] = self._of_all_rows(x, (stream.hook_point, stream.layer_index))
        return found

    def _latent_baseline(self, autoencoder: Autoencoder, layer_index: int) -> Baseline | None:
        """What rows' latents are in their baseline prompts."""
        references, site = self._references, (autoencoder.site.hook_point, layer_index)
        if references is None:
            return None
        return lambda place: references.latents(self._baselines_of(place, site), autoencoder, layer_index)

    def _splice(
        self, autoencoder: Autoencoder, layer_index: int, x: Tensor, past_dictionary: set[int]
    ) -> Tensor:
        plan, dictionary_site = self._plan, autoencoder.site
        site = dictionary_site.hook_point, layer_index
        of_latents = self._placed(latent_interventions(plan, self._model, autoencoder, layer_index), site)
        interventions = [one for one in of_latents if one.is_forward or _sets_gradient(one, past_dictionary)]
        if not interventions and dictionary_site not in plan.kept.sites:
            return x
        written = autoencoder.side_by_side(x)
        inputs = autoencoder.read_in_pass(layer_index, written, self._mlp_inputs)
        if dictionary_site in plan.kept.sites:
            self.read[dictionary_site, layer_index] = self._of_all_rows(inputs, site).detach()
        if interventions:
            baseline = self._latent_baseline(autoencoder, layer_index)
            written = splice(autoencoder.layers[layer_index], inputs, written, interventions, baseline)
            if dictionary_site.is_stream and dictionary_site.hook_point in plan.kept.values:
                # What goes on is what is read of a stream.
                self.values[dictionary_site.hook_point][-1] = self._of_all_rows(written, site).detach()
        if dictionary_site in plan.kept.site_gradients and written.requires_grad:
            # Another tensor than the one that a trace of the stream's own latents starts from.
            written = written.view_as(written)
            self.site_outputs[dictionary_site, layer_index] = written
        return autoencoder.as_at_hook_point(written, x)


def _sets_gradient(one: Intervention, past_objective: set[int]) -> bool:
    """Whether a row's gradient is set: not where its objective is past."""
    return not one.is_forward and one.row not in past_objective
