"""Are the tests awake? Each small breakage of the package below must be noticed by the tests named beside it.

`make mutants` runs all of them on a copy of the package; `python tests/mutants.py NAME ...` some, by name or kind.
"""
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "densegen"
LIMIT = 300.0  # seconds for the tests of one mutant
HEAVY = ["torch", "scipy.stats", "sklearn.metrics", "lightning_fabric"]  # imported once, before the forks
PLAIN = ["--assert=plain", "--tb=line", "--continue-on-collection-errors"]
PLAIN += [f"-pno:{plugin}" for plugin in ("cacheprovider", "unraisableexception", "anyio")]


@dataclass(frozen=True)
class Mutant:
    "One small breakage of the package."
    kind: str  # one word
    name: str
    module: str  # file below densegen/
    old: str  # text that occurs once in it
    new: str  # what stands there instead
    tests: tuple[str, ...]  # files or node ids below tests/, of which one must fail

    def broken(self) -> str:
        "The module with the breakage; `ValueError` unless the old text occurs once."
        source = (PACKAGE / self.module).read_text()
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: expected once in {self.module}: {self.old!r}; got {count} times")
        return source.replace(self.old, self.new)


def _mutant(kind: str, name: str, module: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(kind, name, f"{module}.py", old, new, tuple(f"test_{test}" for test in tests))


def _ladj(case: str) -> str:
    return f"contracts.py::test_ladj_against_autograd[{case}]"


def _round(case: str) -> str:
    return f"contracts.py::test_round_trip_in_float32[random-{case}]"


FLOWS = [
    _mutant("ladj", "affine-sign", "flows/bijections",
            "-wide(self.log_scale).sum().expand(x.shape[0])", "wide(self.log_scale).sum().expand(x.shape[0])",
            _ladj("forward-affine")),
    _mutant("ladj", "sinh-arcsinh-half", "flows/bijections",
            "(log_b + _log_cosh(u) - 0.5 * v", "(log_b + _log_cosh(u) - v", _ladj("forward-sinh-arcsinh")),
    _mutant("ladj", "compose-sign", "flows/bijections",
            "x, change = bijection(x, context)\n            ladj = ladj + change",
            "x, change = bijection(x, context)\n            ladj = ladj - change",
            _ladj("forward-compose")),
    _mutant("order", "compose-order", "flows/bijections",
            "in reversed(self.bijections):", "in self.bijections:", _round("compose")),
    _mutant("order", "inverse-steps", "flows/bijections",
            "for step in reversed(inner)]", "for step in inner]", "memory.py::test_the_steps_of_a_chain"),
    _mutant("axis", "permutation-back", "flows/bijections",
            'register_buffer("back", order.argsort())', 'register_buffer("back", order)', _round("permutation")),
    _mutant("ladj", "flow-ladj", "flows/bijections",
            "(self.base.log_prob(z) + ladj)", "(self.base.log_prob(z) - ladj)",
            "contracts.py::test_integrates_to_one[flow of axes]"),
    _mutant("density", "normal-constant", "flows/bijections",
            "self.constant = -0.5 * math.log(2 * math.pi)", "self.constant = -math.log(2 * math.pi)",
            "contracts.py::test_density_agrees_with_torch_distributions"),
    _mutant("ladj", "coupling-sign", "flows/coupling",
            "torch.addcmul(t, x, s.exp()), s", "torch.addcmul(t, x, s.exp()), -s", _ladj("forward-coupling")),
    _mutant("ladj", "coupling-back-sign", "flows/coupling",
            "return (z - t) * torch.exp(s), s", "return (z - t) * torch.exp(s), -s", _ladj("inverse-coupling")),
    _mutant("ladj", "spline-slope", "flows/splines",
            "2 * sigma.log() + above.log()", "sigma.log() + above.log()",
            "contracts.py::test_a_spline_knows_its_slope_and_its_root"),
    _mutant("density", "spline-root", "flows/splines",
            "2 * c / (-b - (b.square()", "2 * c / (-b + (b.square()",
            "splines.py::test_the_way_back_is_that_of_bisection_and_of_the_slope"),
    _mutant("ladj", "spline-tail", "flows/splines",
            "F.pad(slopes, (1, 1)).exp()", "F.pad(slopes, (1, 1), value=0.5).exp()",
            "splines.py::test_tails_are_the_identity_and_the_edge_has_no_jump"),
    _mutant("ladj", "circle-seam", "flows/splines",
            "[slopes, slopes[..., :1]]", "[slopes, slopes[..., 1:2]]",
            "splines.py::test_a_circular_spline_has_no_seam"),
    _mutant("ladj", "mixture-slope", "flows/splines",
            "- log_scale, -1) - below - above", "- log_scale, -1) - below + above",
            "splines.py::test_slopes_are_those_of_autograd_and_values_increase"),
    _mutant("axis", "autoregressive-mask", "flows/masked",
            "writes[:, None] > reads if strict", "writes[:, None] >= reads if strict",
            "contracts.py::test_masks_let_an_output_see_smaller_numbers_only"),
    _mutant("ladj", "checkerboard-kept", "flows/coupling",
            "torch.where(kept, x, z.to(x.dtype)), total(torch.where(kept, 0.0, log_slope))",
            "torch.where(kept, x, z.to(x.dtype)), total(log_slope)",
            _ladj("forward-checkerboard")),
    _mutant("ladj", "image-coupling-back", "flows/coupling",
            "torch.cat([kept, x.to(z.dtype)], 1), total(log_slope)",
            "torch.cat([kept, x.to(z.dtype)], 1), -total(log_slope)",
            _ladj("inverse-image coupling")),
    _mutant("density", "bits-sign", "flows/dequantization",
            "* math.log(grey_levels) - log_prob)", "* math.log(grey_levels) + log_prob)",
            "glow.py::test_probabilities_of_all_small_images_sum_to_at_most_one"),
    _mutant("density", "bits-levels", "flows/dequantization",
            "(dims * math.log(grey_levels) - log_prob)", "(math.log(grey_levels) - log_prob)",
            "glow.py::test_bits_of_a_uniform_density"),
    _mutant("density", "bits-samples", "flows/dequantization",
            "torch.logsumexp(torch.stack(weights), 0) - math.log(samples)", "torch.logsumexp(torch.stack(weights), 0)",
            "glow.py::test_probabilities_of_all_small_images_sum_to_at_most_one"),
    _mutant("density", "bits-noise", "flows/dequantization",
            "self.log_prob(x, context) - log_q)", "self.log_prob(x, context) + log_q)",
            "glow.py::test_the_density_of_the_noise_is_taken_off"),
    _mutant("ladj", "logit-margin", "flows/dequantization",
            "F.logsigmoid(-z) - math.log(1 - 2 * self.alpha)", "F.logsigmoid(-z) + math.log(1 - 2 * self.alpha)",
            "glow.py::test_probabilities_of_all_small_images_sum_to_at_most_one"),
    _mutant("ladj", "variational-noise", "flows/dequantization",
            "* math.log(1.7) - ladj", "* math.log(1.7) + ladj", "glow.py::test_variational_noise_knows_its_density"),
    _mutant("axis", "squeeze-axes", "flows/dequantization",
            ".permute(0, 1, 3, 5, 2, 4)", ".permute(0, 1, 5, 3, 2, 4)", _round("pyramid")),
    _mutant("ladj", "actnorm-pixels", "flows/glow",
            "-(x.shape[2] * x.shape[3] * log_scale", "-(x.shape[2] * log_scale", _ladj("forward-actnorm")),
    _mutant("ladj", "convolution-pixels", "flows/glow",
            "(x.shape[2] * x.shape[3] * wide(self.log_s)", "(x.shape[2] * wide(self.log_s)",
            "glow.py::test_log_determinant_has_the_factor_of_the_pixels"),
    _mutant("ladj", "convolution-back-sign", "flows/glow",
            "-(z.shape[2] * z.shape[3] * wide(self.log_s)", "(z.shape[2] * z.shape[3] * wide(self.log_s)",
            _ladj("inverse-1x1 convolution")),
    _mutant("ladj", "glow-steps-sign", "flows/glow",
            "log_slope + x.shape[2] * x.shape[3] * (factors[-1].sum() - log_scale.sum())",
            "log_slope + x.shape[2] * x.shape[3] * (factors[-1].sum() + log_scale.sum())",
            _ladj("forward-glow steps")),
    _mutant("ladj", "glow-steps-back", "flows/glow",
            "log_slope - z.shape[2]", "log_slope + z.shape[2]", _ladj("inverse-glow steps")),
    _mutant("start", "actnorm-again", "flows/glow",
            "if not self.initialized:", "if True:", "glow.py::test_actnorm_starts_once_and_survives_loading"),
    _mutant("start", "actnorm-variance", "flows/glow",
            "x.std((0, 2, 3))", "x.var((0, 2, 3))", "glow.py::test_actnorm_starts_with_mean_zero_and_deviation_one"),
    _mutant("density", "class-prior", "flows/glow",
            "every.logsumexp(1) - math.log(len(self.mean))", "every.logsumexp(1)",
            "glow.py::test_class_densities_add_up"),
    _mutant("density", "class-distance", "flows/glow",
            "- 2 * z @ mean.T", "- z @ mean.T", "glow.py::test_a_class_is_a_gaussian_around_its_mean"),
    _mutant("temperature", "glow-temperature", "flows/glow",
            "noise * heat[self.level]", "noise * heat.flip(0)[self.level]", "glow.py::test_temperature_by_level"),
    _mutant("label", "glow-labels", "flows/glow",
            "self.base.mean[draw if context is None else _classes(context)]", "self.base.mean[draw]",
            "glow.py::test_samples_have_the_class_that_is_asked_for"),
    _mutant("weight", "glow-classification", "flows/glow",
            "self.classification * F.cross_entropy", "F.cross_entropy",
            "glow.py::test_the_loss_with_labels_takes_the_noise_off_and_weighs_the_classes"),
    _mutant("density", "class-loss-noise", "flows/glow",
            "+ ladj - log_q", "+ ladj + log_q",
            "glow.py::test_the_loss_with_labels_takes_the_noise_off_and_weighs_the_classes"),
    _mutant("ladj", "residual-back-sign", "flows/residual",
            "return x, -self.measure(x)[1]", "return x, self.measure(x)[1]", _ladj("inverse-residual block")),
    _mutant("ladj", "series-terms", "flows/residual",
            "(-1) ** k * weight / k *", "(-1) ** k * weight *",
            "residual.py::test_the_printed_value_is_the_estimate_not_a_surrogate"),
    _mutant("ladj", "roulette-weights", "flows/residual",
            "(1 - stop) ** -j", "(1 - stop) ** (1 - j)",
            "residual.py::test_the_weights_of_the_roulette_are_one_over_the_probabilities"),
    _mutant("ladj", "exact-sign", "flows/residual",
            "slogdet(wide(identity) + wide(J))", "slogdet(wide(identity) - wide(J))",
            "residual.py::test_exact_against_slogdet"),
    _mutant("gradient", "series-one-upstream", "flows/residual",
            "(grad_value.reshape(-1, *[1] * (x.ndim - 1)) * neumann)", "(grad_value[0] * neumann)",
            "residual.py::test_the_saving_gradient_equals_autograd_item_by_item"),
    _mutant("gradient", "implicit-sign", "flows/residual",
            "ctx.parameters, -a, allow_unused", "ctx.parameters, a, allow_unused",
            "residual.py::test_gradients_through_the_inverse"),
    _mutant("bound", "lipschitz-coefficient", "flows/residual",
            "(self.renew() / self.coeff).clamp_min(1)", "self.renew().clamp_min(1)",
            "residual.py::test_linear_layers_keep_their_operator_norm"),
    _mutant("bound", "fixed-point-error", "flows/residual",
            "changes[-1] * (rate / (1 - rate) if 0.5 < rate < 1 else 1.0)", "changes[-1]",
            "residual.py::test_the_worst_case_converges_to_the_tolerance"),
    _mutant("resume", "memory-chance", "flows/memory",
            "ctx.rng = before if used else None", "ctx.rng = None", "memory.py::test_chance_in_a_roulette_is_replayed"),
    _mutant("bound", "memory-drift", "flows/memory",
            "if ctx.first and way.drift > LARGEST_DRIFT:", "if False:",
            "memory.py::test_an_inverse_that_does_not_lead_back_is_an_error"),
    _mutant("ladj", "memory-sign", "flows/memory",
            "context, *parameters)\n        ladj = ladj + change",
            "context, *parameters)\n        ladj = ladj - change",
            "memory.py::test_whole_flows"),
]

ENERGY = [
    _mutant("density", "midpoint", "energy/energy",
            "(torch.arange(points) + 0.5)", "torch.arange(points)", "energy.py::test_cells_fill_the_box"),
    _mutant("density", "cell-volume", "energy/energy",
            "(-energy(centres)), 0) + log_cell", "(-energy(centres)), 0) - log_cell",
            "energy.py::test_log_partition_of_gaussians"),
    _mutant("density", "bowl-half", "energy/energy",
            "energy + 0.5 * (wide(x)", "energy + (wide(x)",
            "energy.py::test_energy_model_takes_images_and_adds_the_bowl"),
    _mutant("density", "cell-corner", "energy/energy",
            "side * (noise - 0.5)", "side * noise", "energy.py::test_density_is_zero_outside_the_box"),
    _mutant("axis", "box-side", "energy/energy",
            "x.abs().amax(1) > self.limit", "x.abs().amin(1) > self.limit",
            "energy.py::test_density_is_zero_outside_the_box"),
    _mutant("acceptance", "metropolis", "energy/samplers",
            "taken = u.log() < log_ratio", "taken = u < log_ratio",
            "samplers.py::test_the_random_walk_accepts_by_the_ratio_of_densities"),
    _mutant("acceptance", "random-walk", "energy/samplers",
            "_metropolis(here - there, (x, here)", "_metropolis(there - here, (x, here)",
            "samplers.py::test_the_random_walk_accepts_by_the_ratio_of_densities"),
    _mutant("acceptance", "hmc-kinetic", "energy/samplers",
            "here - there + kinetic(r) - kinetic(end)", "here - there",
            "samplers.py::test_hmc_accepts_by_the_total_energy"),
    _mutant("acceptance", "mala-kinetic", "energy/samplers",
            "here - there + kinetic(r) - kinetic(end)", "here - there",
            "samplers.py::test_mala_accepts_by_densities_and_both_proposals"),
    _mutant("acceptance", "tempered-swap", "energy/samplers",
            "(cold[i] - cold[i + 1]) * (values[i]", "(cold[i + 1] - cold[i]) * (values[i]",
            "samplers.py::test_tempered_chains_trade_places_by_the_product_of_differences"),
    _mutant("axis", "tempered-rungs", "energy/samplers",
            "cold.repeat_interleave(len(x))", "cold.repeat(len(x))",
            "samplers.py::test_exact_samplers_have_the_moments_and_modes[tempered-gaussian 2-d]"),
    _mutant("step", "mala-step", "energy/samplers",
            "super().__init__(math.sqrt(2 * step)", "super().__init__(math.sqrt(step)",
            "samplers.py::test_mala_accepts_by_densities_and_both_proposals"),
    _mutant("step", "leapfrog-half", "energy/samplers",
            "alpha=0.5 * step)\n        x = torch", "alpha=step)\n        x = torch",
            "samplers.py::test_leapfrog_is_reversible_and_of_second_order"),
    _mutant("temperature", "langevin-noise", "energy/samplers",
            "self.noise = math.sqrt(2 * step)", "self.noise = math.sqrt(step)",
            "samplers.py::test_small_unadjusted_steps_are_right_within_errors[gaussian 2-d]"),
    _mutant("temperature", "langevin-temperature", "energy/samplers",
            "self.noise**2 / (2 * self.size)", "self.noise**2 / self.size",
            "samplers.py::test_langevin_knows_the_temperature_that_it_samples"),
    _mutant("temperature", "annealed-end", "energy/samplers",
            "k / max(1, steps - 1)", "k / steps", "samplers.py::test_annealing_ends_at_the_target_itself"),
    _mutant("density", "ising-conditional", "energy/samplers",
            "torch.sigmoid(2 * (self", "torch.sigmoid((self",
            "samplers.py::test_one_gibbs_step_leaves_the_distribution_invariant"),
    _mutant("axis", "ising-bonds", "energy/samplers",
            "(x.roll(1, 1) + x.roll(1, 2))", "(x.roll(1, 1) + x.roll(1, 1))",
            "samplers.py::test_transfer_matrix_equals_enumeration"),
    _mutant("order", "gibbs-colours", "energy/samplers",
            "in (self.black, ~self.black):", "in (self.black, self.black):",
            "samplers.py::test_a_sweep_reaches_every_site"),
    _mutant("start", "replay-share", "energy/samplers",
            "device=device) < self.reinit", "device=device) > self.reinit",
            "samplers.py::test_buffer_starts_a_share_anew"),
    _mutant("density", "boltzmann-conditional", "energy/learning",
            "torch.sigmoid(self.b + h @ self.W.T)", "torch.sigmoid(h @ self.W.T)",
            "learning.py::test_rbm_gibbs_leaves_its_distribution_invariant"),
    _mutant("loss", "gap-sign", "energy/learning",
            '"gap": down.mean() - up.mean()', '"gap": up.mean() - down.mean()',
            "learning.py::test_a_step_pushes_energy_down_at_the_data_and_up_at_the_samples"),
    _mutant("loss", "penalty-one-side", "energy/learning",
            "(down.square().mean() + up.square().mean())", "down.square().mean()",
            "learning.py::test_the_penalty_is_on_both_sides"),
    _mutant("loss", "score-trace", "energy/learning",
            "- trace).mean()", "+ trace).mean()",
            "learning.py::test_score_matching_is_its_closed_form_and_the_mean_of_sliced"),
    _mutant("loss", "sliced-half", "energy/learning",
            "(0.5 * slope.square() - direction", "(slope.square() - direction",
            "learning.py::test_sliced_score_matching_is_its_closed_form"),
    _mutant("loss", "denoising-sign", "energy/learning",
            "(noise - sigma * slope)", "(noise + sigma * slope)",
            "learning.py::test_denoising_score_matching_is_its_closed_form"),
    _mutant("loss", "noise-contrast", "energy/learning",
            "-model.energy(x) - self.log_z", "-model.energy(x) + self.log_z",
            "learning.py::test_noise_contrast_is_minimal_at_the_normalized_density"),
    _mutant("density", "annealed-weights", "energy/learning",
            "weight += value(before) - value(after)", "weight += value(after) - value(before)",
            "learning.py::test_ais_on_a_continuous_energy"),
    _mutant("density", "annealed-mean", "energy/learning",
            "torch.logsumexp(weight, 0) - math.log(len(x))", "torch.logsumexp(weight, 0)",
            "learning.py::test_ais_on_a_continuous_energy"),
    _mutant("density", "annealed-start", "energy/learning",
            "(1 - beta) * bias", "beta * bias",
            "learning.py::test_the_path_to_a_machine_begins_at_coins_with_their_bias"),
    _mutant("posterior", "jem-class-energy", "energy/jem",
            "else -logits.gather(1,", "else logits.gather(1,",
            "jem.py::test_marginal_sums_the_joint_and_divides_to_the_posterior"),
    _mutant("noise", "jem-noise", "energy/jem",
            "x = batch[0] + self.noise * torch.randn_like(batch[0])", "x = batch[0]",
            "jem.py::test_noise_is_added_to_what_the_classifier_and_the_density_see"),
    _mutant("metric", "calibration-bins", "energy/jem",
            ".clamp(1, bins) - 1", ".clamp(0, bins - 1)", "jem.py::test_each_bin_is_judged_for_itself"),
    _mutant("metric", "calibration-sign", "energy/jem",
            "(share * (confidence - accuracy).abs())", "(share * (confidence - accuracy))",
            "jem.py::test_calibration_against_a_loop"),
    _mutant("temperature", "best-temperature", "energy/jem",
            "logits.double() / T", "logits.double() * T", "jem.py::test_best_temperature_undoes_a_factor"),
    _mutant("step", "attack-sign", "energy/jem",
            "attacked = attacked + 2.5", "attacked = attacked - 2.5",
            "jem.py::test_attack_on_a_linear_classifier_is_the_best_one"),
    _mutant("sign", "flow-contrast-fake", "energy/recovery",
            "model.energy(_Against.apply(fake))", "model.energy(fake)",
            "recovery.py::test_the_two_players_of_flow_contrast_have_opposite_signs"),
    _mutant("index", "recovery-share", "energy/recovery",
            "_column(self.share[level], data)", "_column(self.share[level + 1], data)",
            "recovery.py::test_levels_shrink_the_data_and_keep_the_variance"),
    _mutant("factor", "recovery-kappa", "energy/recovery",
            "(1 / self.keep.square() - 1).sqrt()", "(1 - self.keep.square()).sqrt()",
            "recovery.py::test_the_conditional_is_the_joint_density"),
    _mutant("order", "recovery-film", "energy/recovery",
            "for t in reversed(range(len(model.keep))):", "for t in range(len(model.keep)):",
            "recovery.py::test_a_film_has_the_variance_that_its_chains_must_give"),
]

ANOMALY = [
    _mutant("metric", "ap-rank", "anomaly/scores",
            "p + count - count.cumsum(0)", "p - count.cumsum(0)", "metrics.py::test_equals_scikit_learn[random-0.5]"),
    _mutant("metric", "auroc-ties", "anomaly/scores",
            "+ (count[tied] * equal).sum()", "+ 2 * (count[tied] * equal).sum()",
            "metrics.py::test_equals_scikit_learn[tied-0.5]"),
    _mutant("metric", "fpr-rank", "anomaly/scores",
            "fp[caught - 1]", "fp[caught - 2]", "metrics.py::test_fpr_at_other_rates"),
    _mutant("threshold", "fpr-side", "anomaly/scores",
            "(tp.double() / p >= tpr)", "(tp.double() / p > tpr)", "metrics.py::test_the_rate_is_reached_exactly"),
    _mutant("void", "void-is-ordinary", "anomaly/scores",
            "positive & ~void, negative & ~void", "positive & ~void, negative | void",
            "dense_metrics.py::test_dense_metrics_pools_and_skips_void"),
    _mutant("threshold", "stream-side", "anomaly/scores",
            "(tp / total_p < tpr)", "(tp / total_p <= tpr)", "metrics.py::test_a_stream_reaches_the_rate_exactly"),
    _mutant("metric", "stream-ties", "anomaly/scores",
            "won + pairs.sum() / 2, won,", "won + pairs.sum(), won,",
            "metrics.py::test_the_stream_is_exact_on_bins_and_its_bounds_hold[tied-9]"),
    _mutant("metric", "judge-interval", "anomaly/scores",
            "[0.025, 0.975]", "[0.05, 0.95]",
            "metrics.py::test_a_judge_gives_exact_metrics_and_the_interval_of_the_plain_bootstrap[shape1]"),
    _mutant("posterior", "softmax-sign", "anomaly/scores",
            "(others.logsumexp(1, keepdim=True) - top)", "(top - others.logsumexp(1, keepdim=True))",
            "scores.py::test_scores_of_logits_against_float64"),
    _mutant("temperature", "energy-temperature", "anomaly/scores",
            "return -temperature * (logits", "return -(logits", "scores.py::test_scores_of_logits_against_float64"),
    _mutant("step", "odin-sign", "anomaly/scores",
            "x.detach() - self.epsilon", "x.detach() + self.epsilon", "scores.py::test_odin_steps_towards_confidence"),
    _mutant("temperature", "odin-temperature", "anomaly/scores",
            "slope.sign()) / self.temperature)", "slope.sign()))", "scores.py::test_odin_steps_towards_confidence"),
    _mutant("metric", "mahalanobis-shared", "anomaly/scores",
            "features - means[labels]", "features - features.mean(0)",
            "scores.py::test_mahalanobis_against_its_formula"),
    _mutant("metric", "nearest-first", "anomaly/scores",
            "indices[:, -1]", "indices[:, 0]", "scores.py::test_neighbours_against_scikit_learn"),
    _mutant("metric", "typicality-one-side", "anomaly/scores",
            "- self.mean).abs().float()", "- self.mean).neg().float()",
            "scores.py::test_typicality_is_two_sided_and_a_ratio_knows_no_coordinates"),
    _mutant("metric", "ratio-sign", "anomaly/scores",
            "(self.background.log_prob(images) - self.model.log_prob(images))",
            "(self.model.log_prob(images) - self.background.log_prob(images))",
            "scores.py::test_densities_rank_the_unlikely_as_anomalous"),
    _mutant("metric", "density-sign", "anomaly/scores",
            "return -self.model.log_prob(images).float()", "return self.model.log_prob(images).float()",
            "scores.py::test_densities_rank_the_unlikely_as_anomalous"),
    _mutant("ladj", "gaussian-volume", "anomaly/scores",
            "- self.root.diagonal().log().sum()", "+ self.root.diagonal().log().sum()",
            "scores.py::test_gaussian_against_torch_and_quadrature"),
    _mutant("metric", "oscr-correct", "anomaly/open_set",
            "against(known[correct], unknown)", "against(known, unknown)",
            "open_set.py::test_oscr_is_the_share_of_pairs_and_the_area_of_the_curve"),
    _mutant("weight", "density-per-feature", "anomaly/open_set",
            "self.weight / phi.shape[1] *", "self.weight *", "open_set.py::test_the_density_is_weighted_per_feature"),
    _mutant("metric", "complexity-sign", "anomaly/complexity",
            "bits_of(self.model, images) - compressed", "bits_of(self.model, images) + compressed",
            "complexity.py::test_the_score_is_cost_minus_length"),
    _mutant("metric", "complexity-header", "anomaly/complexity",
            "_file(picture, codec) - header", "_file(picture, codec)",
            "complexity.py::test_length_is_in_bits_per_dimension_without_the_header"),
    _mutant("noise", "bits-seed", "anomaly/reality_check",
            "bits_per_dim(v, generator=generator)", "bits_per_dim(v)",
            "complexity.py::test_costs_come_with_the_same_noise_each_time"),
]

DENSE = [
    _mutant("threshold", "counts-side", "dense/metrics",
            "(tp < 0.95 * tp[-1])", "(tp <= 0.95 * tp[-1])", "dense_metrics.py::test_counts_reach_the_rate_exactly"),
    _mutant("metric", "counts-order", "dense/metrics",
            "place = bins - 1 - torch.bucketize", "place = torch.bucketize",
            "dense_metrics.py::test_counts_of_images_give_the_pooled_metrics"),
    _mutant("threshold", "component-levels", "dense/components",
            "_TAU = 0.25 + 0.05", "_TAU = 0.3 + 0.05", "dense_metrics.py::test_a_threshold_is_reached_when_it_is_met"),
    _mutant("threshold", "component-side", "dense/components",
            "(siou >= _TAU).sum(0)", "(siou > _TAU).sum(0)",
            "dense_metrics.py::test_a_threshold_is_reached_when_it_is_met"),
    _mutant("metric", "component-charge", "dense/components",
            "/ (size + charged)", "/ size", "dense_metrics.py::test_masks_judged_by_eye"),
    _mutant("threshold", "component-size", "dense/components",
            "size >= min_object, area", "size > min_object, area", "dense_metrics.py::test_sizes_decide_at_their_edge"),
    _mutant("metric", "component-corners", "dense/components",
            "shift=width + 1, reach=1", "shift=width + 1, reach=0", "dense_metrics.py::test_masks_judged_by_eye"),
    _mutant("void", "component-void", "dense/components",
            ".cpu().numpy() & (objects | (truth == 0))", ".cpu().numpy()",
            "dense_metrics.py::test_masks_judged_by_eye"),
    _mutant("threshold", "component-threshold", "dense/components",
            "components(s > self.threshold", "components(s >= self.threshold",
            "dense_metrics.py::test_a_score_at_the_threshold_is_no_prediction"),
    _mutant("threshold", "component-limits", "dense/components",
            "share = (size[0] * size[1]) / (full[0] * full[1])", "share = size[0] / full[0]",
            "dense_metrics.py::test_limits_shrink_with_the_area"),
    _mutant("threshold", "best-f1", "dense/metrics",
            "middle if below <= middle < above else below", "above",
            "dense_metrics.py::test_best_threshold_against_scikit_learn"),
    _mutant("threshold", "size-groups", "dense/components",
            'searchsorted(edges, size[names], side="right")', 'searchsorted(edges, size[names], side="left")',
            "dense_metrics.py::test_groups_by_size_and_distance"),
    _mutant("threshold", "distance-groups", "dense/metrics",
            "bounds, right=True", "bounds, right=False", "dense_metrics.py::test_groups_by_size_and_distance"),
    _mutant("axis", "confusion-axes", "dense/metrics",
            "labels[kept].long() * classes + named", "named * classes + labels[kept].long()",
            "dense_metrics.py::test_rows_of_the_confusion_are_labels_and_columns_predictions"),
    _mutant("metric", "iou-union", "dense/metrics",
            "matrix.sum(1) - hit)", "matrix.sum(1))", "dense_metrics.py::test_confusion_and_iou_against_scikit_learn"),
    _mutant("metric", "open-miou-refused", "dense/metrics",
            "named = torch.where(as_mask(refused, \"refused\"), classes, predicted)", "named = predicted",
            "dense_metrics.py::test_open_miou_by_hand"),
    _mutant("void", "breakdown-others", "dense/metrics",
            "(anomaly != 0) & ((anomaly != 1) | (groups != g))", "(anomaly != 0) & (anomaly != 1)",
            "dense_metrics.py::test_groups_by_size_and_distance"),
    _mutant("metric", "layers-mean", "dense/embedding_density",
            "layer_scores(images).amax(1)", "layer_scores(images).mean(1)",
            "embedding_density.py::test_the_average_comes_from_training"),
    _mutant("ladj", "feature-volume", "dense/embedding_density",
            "self.whiten(vectors)) + self.log_scale", "self.whiten(vectors)) - self.log_scale",
            "embedding_density.py::test_feature_density_is_a_density"),
    _mutant("metric", "layer-average", "dense/embedding_density",
            "density.log_prob(_pixels(z)) - average", "density.log_prob(_pixels(z)) + average",
            "embedding_density.py::test_a_layer_scores_its_average_minus_the_log_density"),
    _mutant("metric", "position-sign", "dense/embedding_density",
            "-(smooth / smooth.sum(0)).log()", "(smooth / smooth.sum(0)).log()",
            "embedding_density.py::test_position_prior_and_colour_by_hand"),
    _mutant("metric", "colour-nearest", "dense/one_liners",
            "torch.stack(squares).amin(0)", "torch.stack(squares).amax(0)",
            "embedding_density.py::test_position_prior_and_colour_by_hand"),
    _mutant("ladj", "neighbour-volume", "dense/embedding_density",
            "math.log(k / n) - ball", "math.log(k / n) + ball",
            "embedding_density.py::test_neighbours_against_sorted_distances"),
    _mutant("ladj", "gaussian-half", "dense/embedding_density",
            "self.log_scale - 0.5 * (u.square()", "self.log_scale - (u.square()",
            "embedding_density.py::test_the_gaussian_is_the_gaussian"),
    _mutant("weight", "eyes-that-learn", "dense/resynthesis",
            "copy.deepcopy(model).eval().requires_grad_(False)", "copy.deepcopy(model).eval()",
            "resynthesis.py::test_the_eyes_of_a_lesson_move_with_it_and_learn_nothing"),
    _mutant("metric", "control-that-peeks", "dense/resynthesis",
            " / 255 if self.painting else torch.full_like(x, 0.5)", " / 255",
            "resynthesis.py::test_the_control_sees_no_painting"),
    _mutant("posterior", "judge-labels", "dense/resynthesis",
            "wrong.float(), reduction", "1 - wrong.float(), reduction",
            "resynthesis.py::test_the_judge_finds_wrong_labels_and_leaves_the_model_alone"),
    _mutant("weight", "painter-perceptual", "dense/resynthesis",
            '"perceptual": self.perceptual * self', '"perceptual": self',
            "resynthesis.py::test_the_likeness_of_the_painter_by_hand"),
    _mutant("weight", "class-weights-power", "dense/segmentation",
            "** -gamma", "** gamma", "segmentation.py::test_class_weights_by_hand"),
    _mutant("weight", "class-weights-mean", "dense/segmentation",
            "weights / (weights * share).sum()", "weights / weights.sum()",
            "segmentation.py::test_class_weights_by_hand"),
    _mutant("weight", "ladder-weights", "dense/segmentation",
            "pixel_cross_entropy(logits, labels, self.weights)", "pixel_cross_entropy(logits, labels)",
            "segmentation.py::test_the_terms_of_the_ladder_by_hand"),
    _mutant("weight", "ladder-aid", "dense/segmentation",
            "0.3 * self._cross_entropy(aid", "self._cross_entropy(aid",
            "segmentation.py::test_the_terms_of_the_ladder_by_hand"),
    _mutant("axis", "no-mirroring", "dense/augmentation",
            "(draw(0, 1) < 0.5).float()", "(draw(0, 1) < 0).float()",
            "segmentation.py::test_half_of_the_images_are_mirrored"),
    _mutant("metric", "overlap-factor", "dense/segmentation",
            "1 - 2 * both /", "1 - both /", "segmentation.py::test_overlap_loss_against_its_formula"),
    _mutant("axis", "tokens-axes", "dense/adapters",
            "unflatten(2, (h, -1))", "unflatten(2, (-1, h))", "segmentation.py::test_tokens_to_map"),
    _mutant("weight", "folded-sign", "dense/lite",
            "shift - mean * factor", "shift + mean * factor",
            "segmentation.py::test_folded_encoder_equals_the_one_with_batch_norms"),
    _mutant("weight", "pretrained-pace", "dense/segmentation",
            '"lr": lr * k', '"lr": lr', "segmentation.py::test_frozen_blocks_stay_and_pretrained_ones_learn_slowly"),
    _mutant("weight", "two-heads-weights", "dense/two_heads",
            "pixel_cross_entropy(logits, classes, getattr(model, \"weights\", None))", "pixel_cross_entropy(logits, classes)",
            "two_heads.py::test_the_classes_keep_their_weights_and_void_alone_costs_nothing"),
    _mutant("posterior", "two-heads-one-term", "dense/two_heads",
            "mean_over(each, kept & ~foreign) + mean_over(each, foreign)", "mean_over(each, kept & ~foreign)",
            "two_heads.py::test_the_classifier_sees_positive_pixels_only"),
    _mutant("void", "two-heads-void", "dense/two_heads",
            "kept & ~foreign", "~foreign",
            "two_heads.py::test_the_classifier_sees_positive_pixels_only"),
    _mutant("posterior", "two-heads-sign", "dense/two_heads",
            "two[:, 1] - two[:, 0]", "two[:, 0] - two[:, 1]", "two_heads.py::test_score_is_the_log_posterior"),
    _mutant("posterior", "hybrid-sign", "dense/dense_hybrid",
            "F.logsigmoid(odds) - density", "F.logsigmoid(odds) + density",
            "two_heads.py::test_hybrid_score_and_its_parts"),
    _mutant("weight", "hybrid-head", "dense/dense_hybrid",
            "channels, 10 * beta", "channels, beta",
            "two_heads.py::test_the_loss_as_printed_is_the_loss_as_run"),
    _mutant("weight", "two-heads-plain", "dense/two_heads",
            "return mean_over(each, kept)", "return mean_over(each, foreign)",
            "two_heads.py::test_both_means_of_the_head_by_hand"),
    _mutant("posterior", "one-class-more", "dense/two_heads",
            "OUTLIER, dense.logits.shape[1], labels", "OUTLIER, 0, labels",
            "two_heads.py::test_one_class_more_is_one_softmax"),
    _mutant("weight", "hybrid-floor", "dense/dense_hybrid",
            "density.clamp_min(self.floor)", "density.clamp_max(self.floor)",
            "two_heads.py::test_the_floor_lets_go_of_what_lies_below_it"),
    _mutant("posterior", "hybrid-masked", "dense/dense_hybrid",
            "logits.float().clamp_min(-1e4)", "logits.float()",
            "two_heads.py::test_masked_classes_give_numbers_or_a_reason"),
    _mutant("posterior", "hybrid-half", "dense/dense_hybrid",
            "return (1 - 2 * self.which) * self", "return self",
            "two_heads.py::test_a_half_of_the_hybrid_is_one_of_its_terms"),
    _mutant("weight", "doubt-weight", "dense/synthetic_negatives",
            '"js": self.weight * doubt', '"js": doubt',
            "synthetic_negatives.py::test_weights_and_temperature_of_the_joint_loss"),
    _mutant("weight", "negatives-weights", "dense/synthetic_negatives",
            'targets, getattr(self.model, "weights", None))', "targets)",
            "synthetic_negatives.py::test_weights_and_temperature_of_the_joint_loss"),
    _mutant("posterior", "doubt-half", "dense/synthetic_negatives",
            "return 0.5 * ((log_u", "return ((log_u", "synthetic_negatives.py::test_js_equals_scipy"),
    _mutant("void", "patch-border", "dense/synthetic_negatives",
            "part[opacity > 0.5] = OUTLIER", "part[opacity > 0.1] = OUTLIER",
            "synthetic_negatives.py::test_a_patch_is_blended_in_by_the_opacity_of_its_outline"),
    _mutant("threshold", "calibrate-side", "dense/your_model",
            "while k / n > rate:", "while k / n >= rate:", "your_model.py::test_rounding_of_the_rate_costs_no_pixel"),
    _mutant("void", "calibrate-void", "dense/your_model",
            "scores[anomaly == 0]", "scores[anomaly != 1]", "your_model.py::test_only_ordinary_pixels_are_counted"),
    _mutant("tiles", "tile-weights", "dense/your_model",
            "w / total[a : a + tile])", "w)", "your_model.py::test_weights_sum_to_one_and_tiles_share_the_overlap"),
    _mutant("tiles", "tile-margin", "dense/your_model",
            "margin = torch.zeros(size), [], overlap // 4", "margin = torch.zeros(size), [], 0",
            "your_model.py::test_tiles_give_the_whole_image_if_the_model_sees_no_further_than_their_margin"),
    _mutant("tiles", "mirror", "dense/your_model",
            "2 * n - 1 - at", "2 * n - 2 - at",
            "your_model.py::test_an_image_smaller_than_a_tile_goes_on_in_its_mirror"),
]

WORKBENCH = [
    _mutant("clip", "never-clipped", "workbench/training",
            "        if clip:\n", "        if False:\n", "training.py::test_gradients_are_clipped_to_the_norm"),
    _mutant("clip", "clipped-at-tenfold", "workbench/training",
            "max_norm=clip,", "max_norm=10 * clip,", "training.py::test_gradients_are_clipped_to_the_norm"),
    _mutant("average", "decay-reversed", "workbench/state",
            "get_ema_multi_avg_fn(decay)", "get_ema_multi_avg_fn(1 - decay)",
            "training.py::test_average_is_the_exponential_one"),
    _mutant("average", "integers-averaged", "workbench/state",
            "if kept[0].is_floating_point():", "if True:", "training.py::test_average_copies_what_has_no_average"),
    _mutant("resume", "average-forgotten", "workbench/state",
            'self.average.load_state_dict(content["average"])', "pass",
            "training.py::test_resume_is_exact[0.9-tensors]"),
    _mutant("resume", "optimizer-forgotten", "workbench/state",
            'self.optimizer.load_state_dict(content["optimizer"])', "pass",
            "training.py::test_resume_is_exact[None-tensors]"),
    _mutant("resume", "numpy-forgotten", "workbench/batches",
            "np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))", "pass",
            "training.py::test_every_generator_goes_on_where_it_was[numpy]"),
    _mutant("resume", "python-forgotten", "workbench/batches",
            'random.setstate(states["python"])', "pass",
            "training.py::test_every_generator_goes_on_where_it_was[python]"),
    _mutant("resume", "torch-forgotten", "workbench/batches",
            'torch.set_rng_state(states["torch"])', "pass",
            "training.py::test_every_generator_goes_on_where_it_was[torch]"),
    _mutant("resume", "other-rate-accepted", "workbench/state",
            '"lr": [float(group["lr"]) for group in groups]', '"lr": None',
            "training.py::test_a_checkpoint_made_with_something_else_is_refused[lr]"),
    _mutant("resume", "no-lock", "workbench/checkpoint",
            "lock.acquire()", "pass", "training.py::test_the_second_run_on_a_checkpoint_is_refused"),
    _mutant("resume", "no-checksum", "workbench/checkpoint",
            "if hashlib.sha256(data).hexdigest().encode() != seal[2]:", "if False:",
            "checkpoint.py::test_no_flipped_bit_is_taken_for_whole"),
    _mutant("resume", "nan-saved", "workbench/training",
            "_check_weights(self)\n        if self.fabric", "if self.fabric", "training.py::test_nan_is_never_saved"),
    _mutant("mode", "evaluated-in-training", "workbench/training",
            "model.eval()\n    with torch.no_grad(), forked():", "with torch.no_grad(), forked():",
            "training.py::test_evaluation_is_in_evaluation_mode_and_training_in_training_mode"),
    _mutant("mode", "left-in-training", "workbench/training",
            'state.model.eval()\n    if keep == "best"', 'if keep == "best"',
            "training.py::test_evaluation_is_in_evaluation_mode_and_training_in_training_mode"),
    _mutant("noise", "evaluation-draws", "workbench/training",
            "with torch.no_grad(), forked():", "with torch.no_grad():",
            "training.py::test_evaluation_does_not_change_the_training"),
    _mutant("order", "same-order", "workbench/batches",
            "hash((self.seed, epoch)) % 2**63", "hash((self.seed, 0)) % 2**63",
            "batches.py::test_every_epoch_has_its_own_order"),
    _mutant("order", "half-of-the-items", "workbench/batches",
            "first = place * stride +", "first = place // 2 * stride +",
            "batches.py::test_batches_cover_each_epoch_once"),
    _mutant("schedule", "half-a-cosine", "workbench/training",
            "(1 + math.cos(math.pi * (done", "(1 + math.cos(0.5 * math.pi * (done",
            "training.py::test_cosine_rises_and_falls_to_zero"),
    _mutant("schedule", "warmup", "workbench/training",
            "return done / warmup", "return done", "training.py::test_cosine_rises_and_falls_to_zero"),
    _mutant("schedule", "rate-fixed", "workbench/training",
            'group["lr"] = lr * factor', 'group["lr"] = lr', "training.py::test_the_schedule_multiplies_the_rate"),
    _mutant("threshold", "best-is-worst", "workbench/training",
            "if value < best:", "if not value < best:", "training.py::test_terms_and_best_weights"),
    _mutant("threshold", "patience", "workbench/training",
            "state.stale < patience)", "state.stale <= patience)", "training.py::test_terms_and_best_weights"),
    _mutant("threshold", "nan-passes", "workbench/training",
            "if not abs(loss) <= loop.limit:", "if abs(loss) > loop.limit:",
            "training.py::test_bad_numbers_in_the_batch_are_blamed_on_the_data"),
    _mutant("format", "no-autocast", "workbench/training",
            "        return self.model.loss(batch)",
            '        with torch.autocast("cpu", enabled=False):\n            return self.model.loss(batch)',
            "training.py::test_number_formats_are_used[bf16-mixed]"),
    _mutant("interval", "spread-by-n", "workbench/compare",
            "m.var(ddof=1)", "m.var(ddof=0)", "compare.py::test_three_seeds_are_judged_by_the_spread_with_n_minus_1"),
    _mutant("interval", "one-sided", "workbench/compare",
            "stats.t.ppf((1 + level) / 2", "stats.t.ppf(level",
            "compare.py::test_three_seeds_are_judged_by_the_spread_with_n_minus_1"),
    _mutant("metric", "rhat-between", "workbench/diagnostics",
            "+ halves.mean(0).var(0)", "", "diagnostics.py::test_chains_that_disagree"),
    _mutant("metric", "sample-size", "workbench/diagnostics",
            "tau = -1 + 2 *", "tau = 2 *", "diagnostics.py::test_autoregressive_sequences_have_their_size[0.5]"),
    _mutant("claim", "false-claims-pass", "workbench/run",
            "if false and judged:", "if False:", "run.py::test_false_claim_fails_from_scale_cpu_on"),
    _mutant("claim", "judged-at-smoke", "workbench/run",
            "run.scale is not Scale.smoke", "True", "run.py::test_nothing_is_judged_at_smoke"),
    _mutant("start", "numpy-unseeded", "workbench/run",
            "np.random.seed(seed % 2**32)", "pass", "run.py::test_start_seeds_everything"),
    _mutant("data", "digits-overlap", "workbench/data",
            "else order[1500:]", "else order[1000:]",
            "data.py::test_the_parts_of_the_digits_share_nothing_and_leave_nothing_out"),
    _mutant("data", "cifar-test-is-training", "workbench/data",
            "else slice(source.cut, None)", "else slice(source.cut)",
            "data.py::test_the_parts_of_the_lossless_cifar_share_nothing"),
    _mutant("data", "cifar-batches", "workbench/data",
            'else ["test_batch.bin"]', 'else ["data_batch_1.bin"]', "data.py::test_cifar_binary"),
    _mutant("axis", "cifar-axes", "workbench/data",
            "reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)", "reshape(-1, 3, 32, 32).transpose(0, 3, 2, 1)",
            "data.py::test_cifar_binary"),
    _mutant("data", "svhn-ten", "workbench/data",
            "np.where(labels == 10, 0,", "np.where(labels == 10, 10,", "data.py::test_svhn_matlab"),
    _mutant("data", "photographs-shared", "workbench/data",
            '"test": ["skimage/chelsea.png", "sklearn/flower.jpg"]',
            '"test": ["skimage/coffee.png", "sklearn/flower.jpg"]',
            "data.py::test_patches_of_test_and_training_come_from_different_photographs"),
    _mutant("data", "any-hash", "workbench/sources",
            "if actual != known:", "if False:", "data.py::test_a_file_with_another_hash_is_refused[npz]"),
    _mutant("density", "rings-radius", "workbench/data",
            "return log_radius - torch.log(2 * math.pi * r[:, 0])", "return log_radius - torch.log(r[:, 0])",
            "data.py::test_density_integrates_to_one[rings]"),
]

COURSE = [
    _mutant("key", "versions", "course/key",
            "sorted(settings.items()), versions_of(root), _threads", "sorted(settings.items()), _threads",
            "runner.py::test_the_key_changes_with_all_that_decides[numpy]"),
    _mutant("key", "tables", "course/key",
            ', *root.glob("results/*.json")]', "]",
            "runner.py::test_the_key_changes_with_all_that_decides[table changed]"),
    _mutant("key", "data-time", "course/key",
            "state.st_size, state.st_mtime_ns", "state.st_size",
            "runner.py::test_the_key_changes_with_all_that_decides[data of the same size]"),
    _mutant("key", "folders", "course/key",
            "p.relative_to(root).as_posix(): p.read_bytes()", "p.name: p.read_bytes()",
            "runner.py::test_the_key_changes_with_all_that_decides[module moved]"),
    _mutant("key", "threads", "course/key",
            "_threads(threads), _data", "_data", "runner.py::test_the_key_changes_with_parameters_and_threads"),
    _mutant("own", "no-folder-lock", "course/processes",
            "return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "return None",
            "runner.py::test_a_folder_has_one_run_at_a_time"),
    _mutant("resume", "other-checkpoint", "course/runner",
            'mark.read_text(errors="replace") == key', "True",
            "runner.py::test_checkpoints_of_other_sources_are_not_used"),
]

SCORE = [
    _mutant("trust", "archives-trusted", "dense/detector_file",
            "if exported and not trust:", "if False:", "score.py::test_a_file_that_wants_to_run_code_does_not"),
    _mutant("trust", "weights-elsewhere", "dense/safe_graph",
            "if message.external_data or message.data_location == TensorProto.EXTERNAL:", "if False:",
            "score.py::test_hostile_and_broken_graphs_cost_one_line[a constant elsewhere]"),
    _mutant("trust", "loops", "dense/safe_graph",
            " or message.op_type in _LOOPS):", "):", "score.py::test_hostile_and_broken_graphs_cost_one_line[a loop]"),
    _mutant("trust", "functions", "dense/safe_graph",
            '"FunctionProto": "functions", ', "", "score.py::test_hostile_and_broken_graphs_cost_one_line[a function]"),
    _mutant("trust", "nan-weights", "dense/safe_graph",
            "if small and np.isnan(", "if False and np.isnan(",
            "score.py::test_hostile_and_broken_graphs_cost_one_line[NaN]"),
    _mutant("trust", "bomb", "dense/safe_graph",
            "    _count_fields(data, onnx.ModelProto.DESCRIPTOR)\n", "",
            "score.py::test_a_bomb_is_refused_before_it_is_parsed"),
    _mutant("tiles", "overlap-bound", "dense/detector_file",
            "_whole(overlap, 0, min(tile) // 2)", "_whole(overlap, 0, min(tile))",
            "score.py::test_senseless_tiles_are_not_written"),
    _mutant("trust", "calibration-of-nan", "dense/detector_file",
            " and math.isfinite(v) for v", " for v", "score.py::test_the_note_is_not_trusted"),
    _mutant("axis", "orientation", "dense/photograph",
            "picture = ImageOps.exif_transpose(picture)", "picture.load()",
            "score.py::test_a_picture_on_its_side_is_turned"),
    _mutant("view", "transparency", "dense/photograph",
            "(GROUND, GROUND, GROUND, 255)", "(0, 0, 0, 255)", "score.py::test_transparent_pixels_stand_on_grey"),
    _mutant("own", "written-over", "dense/photo_folder",
            "if os.path.lexists(path) and not is_result(path):", "if False:",
            "score.py::test_files_of_the_user_are_not_written_over"),
]

HOMEWORK = [
    _mutant("grade", "not-restored", "course/handed_in",
            "        if is_solution(cell):\n", "        if name in theirs:\n",
            "homework_parts.py::test_given_cells_are_those_of_the_release"),
    _mutant("grade", "another-homework", "course/handed_in",
            "    if not theirs:\n", "    if False:\n", "homework_parts.py::test_another_homework_is_refused"),
    _mutant("grade", "links-followed", "course/handed_in",
            "os.O_RDONLY | os.O_NOFOLLOW", "os.O_RDONLY", "homework_parts.py::test_only_plain_files_are_read"),
    _mutant("grade", "second-names", "course/handed_in",
            "if facts.st_nlink > 1:", "if False:", "homework_parts.py::test_only_plain_files_are_read"),
    _mutant("grade", "files-of-any-size", "course/handed_in",
            "if facts.st_size > LARGEST:", "if False:", "homework_parts.py::test_only_plain_files_are_read"),
    _mutant("grade", "two-of-a-student", "course/grading",
            "if names.count(names[number]) > 1:", "if False:", "homework_parts.py::test_who_handed_in_what"),
    _mutant("grade", "hidden-part-inside", "course/assignment",
            'parted(cell.source, "hidden check")[0] if is_check(cell) else cell.source', "cell.source",
            "homework_parts.py::test_what_is_executed_shows_nothing_hidden"),
    _mutant("judge", "any-tolerance", "course/homework",
            "np.isclose(got, wanted, rtol=rtol, atol=atol)", "np.isclose(got, wanted, rtol=0.1, atol=0.1)",
            "homework.py::test_difference"),
    _mutant("judge", "nan-is-nan", "course/homework",
            "rtol=rtol, atol=atol)\n    return None if close", "rtol=rtol, atol=atol, equal_nan=True)\n    return None if close",
            "homework.py::test_difference"),
    _mutant("judge", "shapes-broadcast", "course/homework",
            "if got.shape != wanted.shape:", "if False:", "homework.py::test_difference"),
    _mutant("judge", "nan-for-a-judge", "course/homework",
            'if _finite(result) else "expected finite numbers"', "", "homework.py::test_a_judge_never_sees_what_is_not_finite"),
    _mutant("judge", "points-for-an-error", "course/judging",
            'return _clean(str(answer.get("error")))[:300]', "return None",
            "homework_parts.py::test_right_answers_and_no_others"),
    _mutant("judge", "points-for-what-cannot-be-judged", "course/judging",
            'return f"this answer cannot be judged ({type(error).__name__})"', "return None",
            "homework_parts.py::test_right_answers_and_no_others"),
    _mutant("judge", "answers-missing", "course/judging",
            'return "the notebook did not come this far"', "return None", "homework_parts.py::test_no_answer_is_no_point"),
    _mutant("judge", "fewer-answers", "course/judging",
            "len(found) == len(task.checks)", "True", "homework_parts.py::test_no_answer_is_no_point"),
    _mutant("judge", "last-line-counts", "course/judging",
            'answers.setdefault(frame["cell"], frame["answers"])', 'answers[frame["cell"]] = frame["answers"]',
            "homework.py::test_forged_lines_are_forgotten"),
    _mutant("judge", "any-size", "course/judging",
            "if _size(value) > largest:", "if False:", "homework_parts.py::test_an_answer_has_a_size"),
    _mutant("judge", "arguments-shared", "course/judging",
            "check.wrong(value, decode(encode(arguments)))", "check.wrong(value, arguments)",
            "homework_parts.py::test_a_judge_cannot_change_the_next_students_arguments"),
    _mutant("judge", "same-questions-for-all", "course/judging",
            '"\\0".join([secret, *words])', '"\\0".join(words)', "homework.py::test_the_same_secret_asks_the_same"),
    _mutant("judge", "html-kept", "course/judging",
            '"text/markdown", "image/png")', '"text/markdown", "image/png", "text/html")',
            "homework.py::test_forged_lines_are_forgotten"),
    _mutant("judge", "lottery", "course/student",
            "torch.manual_seed(0)", "pass", "homework_parts.py::test_the_same_function_answers_the_same"),
    _mutant("judge", "any-depth", "course/plain",
            "if depth > _DEPTH or not (", "if not (", "homework.py::test_damaged_values_are_refused"),
    _mutant("wall", "no-time-limit", "course/sandbox",
            "time.monotonic() - began > limits.wall", "False", "homework_parts.py::test_a_limit_ends_it[time]"),
    _mutant("wall", "no-memory-limit", "course/sandbox",
            "memory > limits.memory", "False", "homework_parts.py::test_a_limit_ends_it[memory]"),
    _mutant("wall", "no-limit-of-processes", "course/sandbox",
            "count > limits.processes", "False", "homework_parts.py::test_a_limit_ends_it[processes]"),
    _mutant("wall", "no-limit-of-output", "course/sandbox",
            '"output": reader.full', '"output": False', "homework_parts.py::test_a_limit_ends_it[output]"),
    _mutant("wall", "environment-inside", "course/sandbox",
            '"--die-with-parent", "--clearenv"', '"--die-with-parent"', "homework_parts.py::test_what_is_seen_inside"),
    _mutant("wall", "environment-outside", "course/sandbox",
            "subprocess.Popen(command, env=_outside(home), cwd", "subprocess.Popen(command, cwd",
            "homework_parts.py::test_what_is_seen_inside"),
    _mutant("wall", "network", "course/sandbox",
            '"--unshare-all", "--uid"', '"--unshare-all", "--share-net", "--uid"',
            "homework_parts.py::test_what_is_seen_inside"),
    _mutant("wall", "course-writable", "course/sandbox",
            'words += ["--ro-bind", str(Path(densegen', 'words += ["--bind", str(Path(densegen',
            "homework_parts.py::test_what_is_seen_inside"),
    _mutant("wall", "graded-without-a-wall", "course/sandbox",
            "    if unsafe:\n", "    if True:\n", "homework.py::test_without_a_sandbox_it_refuses"),
    _mutant("class", "all-anew", "course/grading",
            "            return last, True\n", "            pass\n", "homework_parts.py::test_what_is_graded_anew"),
    _mutant("class", "nothing-anew", "course/grading",
            '"\\0".join(parts).encode() + data)', '"\\0".join(parts).encode())', "homework_parts.py::test_what_is_graded_anew"),
    _mutant("class", "nobody-forgotten", "course/grading",
            "            path.unlink()\n", "            pass\n", "homework_parts.py::test_what_is_graded_anew"),
    _mutant("class", "two-gradings-at-once", "course/grading",
            "with owned(out):", "with contextlib.nullcontext():", "homework_parts.py::test_what_is_graded_anew"),
    _mutant("class", "teacher-not-tried", "course/grading",
            'if marks.wrong or marks.status != "graded":', "if False:",
            "homework_parts.py::test_a_wrong_solution_of_the_teacher_is_told"),
    _mutant("class", "points-for-all", "course/grading",
            "0.0 if wrong else float(task.points)", "float(task.points)", "homework.py::test_points_before_a_failure_stay"),
    _mutant("class", "points-by-hand-lost", "course/gradebook",
            'sum(found) + sum(word for word in words if word != "")', "sum(found)",
            "homework.py::test_points_by_hand_are_kept_and_counted"),
    _mutant("class", "formula-in-a-table", "course/gradebook",
            'return f"\'{text}" if text[:1] in tuple("=+-@\\t\\r") else text', "return text",
            "homework_parts.py::test_texts_of_strangers_stay_texts"),
    _mutant("class", "script-in-a-page", "course/gradebook",
            "<{kind}>{html.escape(str(cell))}</{kind}>", "<{kind}>{cell}</{kind}>",
            "homework_parts.py::test_texts_of_strangers_stay_texts"),
    _mutant("class", "one-folder-for-two", "course/gradebook",
            "    return name if exact else f", "    return name if True else f", "homework.py::test_folders_of_students_are_apart"),
    _mutant("release", "hidden-tests-left", "course/release",
            "CheckCellMetadata ClearHiddenTests", "CheckCellMetadata", "homework.py::test_release_takes_everything_out"),
    _mutant("release", "unlocked", "course/release",
            '"LockCells ClearSolutions', '"ClearSolutions', "homework.py::test_release_takes_everything_out"),
    _mutant("release", "leaks-allowed", "course/release",
            "            found.append(f\"{name}: outputs or attachments are left\")\n", "            pass\n",
            "homework.py::test_a_leak_is_found"),
    _mutant("release", "leaks-in-metadata", "course/release",
            'return "\\n".join(_texts(part) for item in found.items() for part in item)', 'return str(found.get("source", ""))',
            "homework.py::test_a_leak_is_found"),
    _mutant("release", "unsolved-passes", "course/homework_cli",
            "if failed or passed < len(states) or not states:", "if failed:", "homework.py::test_new_release_check"),
]

MUTANTS = [*FLOWS, *ENERGY, *ANOMALY, *DENSE, *WORKBENCH, *COURSE, *SCORE, *HOMEWORK]


def _node(name: str) -> str:
    "The id of a test as mutants name it."
    return name.removeprefix("tests/")


def _among(node: str, tests: Iterable[str]) -> bool:
    "Whether a test is one of those named: a file, a function with all its parameters, or one set of them."
    return any(node.startswith(f"{test}::") or node.partition("[")[0] == test or node == test for test in tests)


class Chosen:
    "A plugin of pytest that runs the named tests only, and writes down how each of them ended."

    def __init__(self, tests: list[str], file: Path):
        self.tests, self.file, self.ended = tests, file, {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        "Called once with all tests of the files."
        items[:] = [item for item in items if _among(_node(item.nodeid), self.tests)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        "Called for the setup, the call and the teardown of each test; the worst of them counts."
        node = _node(report.nodeid)
        if report.outcome != "passed" or report.when == "call":
            self.ended[node] = "failed" if "failed" in (report.outcome, self.ended.get(node)) else report.outcome

    def pytest_sessionfinish(self) -> None:
        "At the end."
        self.file.write_text(json.dumps(self.ended))


def _pytest(home: Path, tests: list[str], options: list[str]) -> None:
    "In a process of its own: run tests of the checkout on the package in `home`; ends with pytest's exit code."
    os.setsid()
    os.chdir(home)
    with open(home / "log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.path.insert(0, str(home))
    found = importlib.util.find_spec("densegen")
    assert found and found.origin and Path(found.origin).is_relative_to(home), f"the package is not the copy: {found}"
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # a failure is enough, no smallest example
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    files = sorted({f"{TESTS}/{test.partition('::')[0]}" for test in tests})
    os._exit(pytest.main([*PLAIN, *options, *files], [Chosen(tests, home / "outcomes.json")]))


def run(home: Path, tests: list[str], options: list[str], limit: float | None) -> tuple[int | None, float]:
    "Exit code of pytest, None if the time was up; and the seconds."
    process = multiprocessing.get_context("forkserver").Process(target=_pytest, args=(home, tests, options))
    began = time.monotonic()
    process.start()
    try:
        process.join(limit)
        code = process.exitcode
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return code, time.monotonic() - began


def chosen(words: list[str]) -> list[Mutant]:
    "Mutants by name or kind, all without words; `ValueError` for a word that is neither."
    unknown = set(words) - {m.name for m in MUTANTS} - {m.kind for m in MUTANTS}
    if unknown:
        kinds = ", ".join(sorted({m.kind for m in MUTANTS}))
        raise ValueError(f"expected names or kinds of mutants ({kinds}); got {unknown}")
    return [m for m in MUTANTS if not words or {m.name, m.kind} & set(words)]


def verdicts(home: Path, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str, float]]:
    "How each mutant ended, and the seconds; the first run is that of all named tests on the unbroken copy."
    code, _ = run(home, sorted({test for m in mutants for test in m.tests}), [], None)
    if code not in (0, 1):
        log = (home / "log.txt").read_text()[-2000:]
        raise RuntimeError(f"the tests on the unbroken package ended with {code}: {log}")
    whole = json.loads((home / "outcomes.json").read_text())
    for mutant in mutants:
        own = [outcome for node, outcome in whole.items() if _among(node, mutant.tests)]
        if "failed" in own or "passed" not in own:
            yield mutant, "tests broken without it", 0.0
            continue
        file = home / "densegen" / mutant.module
        file.write_text(mutant.broken())
        code, seconds = run(home, list(mutant.tests), ["-x"], LIMIT)
        shutil.copy(PACKAGE / mutant.module, file)
        failed = code == 1 and "failed" in json.loads((home / "outcomes.json").read_text()).values()
        verdict = {0: "SURVIVED", None: "time is up"}.get(code, f"pytest ended with {code}")
        yield mutant, "noticed" if failed else verdict, seconds


def main(words: list[str]) -> int:
    "Run the mutants, print a table; 1 if one was not noticed, 2 for an unknown word."
    try:
        mutants = chosen(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    table, bad = Table("mutant", "kind", "", "seconds", title="tests of the tests"), 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        shutil.copytree(PACKAGE, home / "densegen", ignore=shutil.ignore_patterns("__pycache__"))
        os.environ |= {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        multiprocessing.get_context("forkserver").set_forkserver_preload(HEAVY)
        for mutant, verdict, seconds in verdicts(home, mutants):
            bad += verdict != "noticed"
            table.add_row(mutant.name, mutant.kind, verdict, f"{seconds:.1f}")
            print(f"{mutant.name}: {verdict}", file=sys.stderr, flush=True)
    Console().print(table)
    print(f"{len(mutants) - bad} of {len(mutants)} noticed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
