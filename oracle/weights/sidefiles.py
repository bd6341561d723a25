# SPDX-License-Identifier: MIT OR Apache-2.0
"""What stands beside the weights and changes what is computed: side files whose every key is known or refused, and options.

Each format has a function here that turns what is said into Settings, which are all that the arithmetic knows of a format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from oracle import strict_json
from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, IDENTITY, JUMPRELU, LAYER_NORM, RELU, SCALED, TOPK, UNIT_RMS
from oracle.errors import WeightsError

SIZE_LIMIT = 1024 * 1024
MOST_K = 1 << 24

# What a tensor is for.
W_ENC, B_ENC, W_DEC, B_DEC, W_SKIP, THRESHOLD, LOG_THRESHOLD = "W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold", "log_threshold"
B_GATE, R_MAG, B_MAG, SCALING, K, UNUSED = "b_gate", "r_mag", "b_mag", "scaling_factor", "k", "unused"


class Context(NamedTuple):
    """What is said of a layer's arithmetic elsewhere: the repo's name, `activation` and `k` by its config.yaml, `k`, `input_scale`,
    `normalize` and `ignore_key` by options."""

    repo: str = ""
    activation: str | None = None
    k: int | None = None
    input_scale: float | None = None
    ignore_key: tuple[str, ...] = ()
    normalize: str | None = None


class Settings(NamedTuple):
    """How a layer's numbers follow from its tensors.

    `gate` is one of chain.py's kinds, with its `k`, and whether a top-k is one of ReLU; `level` is a threshold for all features,
    `level_factor` what thresholds are multiplied by. `by_decoder_norm` is whether pre-activations are multiplied by the norm of
    their row of W_dec, and activations divided by it before W_dec. The input is `normalised`, by `factor` where it is scaled, and
    `minus_b_dec`; what a decoder gives is brought back where `restores`, of a scaled input by `back`. `root_scaled` is whether residuals are divided, and the
    decoder's rows multiplied, by the root of d_model. `unused` are tensors that say nothing here, `ignored` keys that were passed
    over on demand, `notes` what a user should know.
    """

    gate: str = RELU
    k: int | None = None
    relu: bool = True
    level: float | None = None
    level_factor: float = 1.0
    by_decoder_norm: bool = False
    normalised: str = IDENTITY
    factor: float = 1.0
    back: float = 1.0
    minus_b_dec: bool = False
    restores: bool = True
    root_scaled: bool = False
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class SideFile(NamedTuple):
    """A row's side file: its name beside the encoder's file, {stem} for that one's, and the keys that are `obeyed`, and `silent` of
    the numbers. A key inside another is `outer.inner`; `outer.*` are all of them."""

    name: str
    obeyed: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """The values of a side file by their keys; `label` names it in messages."""

    label: str
    values: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, row: SideFile, reader: BinaryIO, label: str, ignore_key: Collection[str]) -> Side:
        """A side file's values. Raises WeightsError where it is no JSON object, or has a key that is not known."""
        text = reader.read(SIZE_LIMIT + 1)
        if len(text) > SIZE_LIMIT:
            raise WeightsError(f"{label} is larger than {SIZE_LIMIT >> 20} MiB, the most that is read of it")
        try:
            document = strict_json.loads(text)
        except ValueError as error:
            raise WeightsError(f"{label} is not readable JSON: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
        if not isinstance(document, dict):
            raise WeightsError(f"{label} holds no JSON object")
        values, ignored = {}, []
        silent, all_within = frozenset(row.silent), tuple(name[:-1] for name in row.silent if name.endswith(".*"))
        for key, value in _flattened(document, row):
            if key in ignore_key:
                ignored.append(key)
            elif key in row.obeyed:
                values[key] = value
            elif key not in silent and not key.startswith(all_within):
                raise WeightsError(
                    f"{label}: `{_shown(key)}` is {_shown(value)}, and what that does to the numbers is not known: "
                    f"--ignore-key {_shown(key)} goes on without it"
                )
        return cls(label, values, tuple(ignored))

    def error(self, key: str, problem: str) -> WeightsError:
        value = self.values.get(key)
        return WeightsError(f"{self.label}: `{key}` is {'not there' if key not in self.values else _shown(value)}; {problem}")

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """One of some texts."""
        value = self.values.get(key)
        value = default if value is None else value
        if value not in tuple(choices):
            raise self.error(key, f"{', '.join(choices)} {'are' if len(tuple(choices)) > 1 else 'is'} read")
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is not None and type(value) is not bool:
            raise self.error(key, "true or false is read")
        return default if value is None else bool(value)

    def number(self, key: str, *, positive: bool = False) -> float:
        value: Any = self.values.get(key)
        if type(value) not in (int, float) or not abs(value) < 1e30 or (positive and value <= 0):
            raise self.error(key, f"a {'positive ' if positive else ''}number is read")
        return float(value)

    def count(self, key: str) -> int | None:
        """A whole number from 1; None where it is not there."""
        value = self.values.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= MOST_K):
            raise self.error(key, f"a whole number from 1 to {MOST_K} is read")
        return value

    def must_be(self, key: str, right: bool) -> None:
        """Hold a flag that there is against the one value that is read."""
        if self.flag(key, right) != right:
            raise self.error(key, f"{str(right).lower()} is read")


def _flattened(document: dict[str, Any], row: SideFile, outer: str = "") -> Iterable[tuple[str, Any]]:
    """Keys and values; of an object inside it those of its own keys, where one of them is obeyed."""
    objects = {known[:place] for known in (*row.obeyed, *row.silent) for place, letter in enumerate(known) if letter == "."}
    for key, value in document.items():
        name = f"{outer}{key}"
        if isinstance(value, dict) and name in objects:
            yield from _flattened(value, row, f"{name}.")
        else:
            yield name, value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return {True: "true", False: "false", None: "null"}.get(value, "") if value is None or type(value) is bool else ascii(value)[:80].strip("'")


def _same_count(label: str, counts: dict[str, int | None], needed: str) -> int:
    """The k that some places say, by what they are called. Raises WeightsError where none does, or where they differ."""
    said = {name: count for name, count in counts.items() if count is not None}
    if not said:
        raise WeightsError(f"{label}: {needed}: give it with --k")
    if len(set(said.values())) > 1:
        raise WeightsError(f"{label}: " + " and ".join(f"{name} says k = {count}" for name, count in said.items()) + ": only one can be right")
    return next(iter(said.values()))


# --- what each format makes of it -------------------------------------------------------------------------------------

# Of a side file, the tensors that there are by what they are for, the number of a tensor `k`, and the context.
Reading = Callable[[Side, Collection[str], "int | None", Context], Settings]


def plain(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """ReLU, or JumpReLU where there is a threshold; or a top k, as a config.yaml says."""
    if context.activation == TOPK:
        count = _same_count(side.label, {"config.yaml or --k": context.k, "the tensor k": k}, "the config.yaml asks for a top-k gate without k")
        if THRESHOLD in present:
            raise WeightsError(f"{side.label}: it has a threshold, but the config.yaml says that its activation is {TOPK}")
        return Settings(TOPK, count, relu=False)
    gate = JUMPRELU if THRESHOLD in present else RELU
    if context.activation is not None and context.activation != gate:
        has = f"it has {'a' if gate == JUMPRELU else 'no'} threshold"
        raise WeightsError(f"{side.label}: {has}, but the config.yaml says that its activation is {context.activation}")
    if k is not None or context.k is not None:
        raise WeightsError(f"{side.label}: k is given, but nothing says that its gate is a top k of its features")
    return Settings(gate)


def embedding(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """As SAELens has it: W_enc divided, and W_dec multiplied, by the root of d_model."""
    return plain(side, present, k, context)._replace(root_scaled=True)


def minus_b_dec(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """ReLU of an input from which b_dec is subtracted."""
    return plain(side, present, k, context)._replace(minus_b_dec=True)


def qwen_scope(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """The k largest of ReLU. Only the repo's name says k: `...-W32K-L0_50`."""
    named = re.search(r"-L0_([1-9]\d{0,6})$", context.repo)
    return Settings(TOPK, _same_count(side.label, {"the repo's name": int(named[1]) if named else None, "--k": context.k}, "its k is not in the repo's name"))


SAELENS_ARCHITECTURES = (
    "standard", JUMPRELU, TOPK, ABSTOPK, GATED, "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip


def saelens(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """SAELens's cfg.json, of its version 6 and of those before."""
    version = side.values.get("sae_lens_version") or side.values.get("metadata.sae_lens_version")
    is_old = not isinstance(version, str) or int(re.match(r"\d{0,9}", version)[0] or 0) < 6  # type: ignore[index]
    architecture = side.choice("architecture", SAELENS_ARCHITECTURES, "standard" if is_old else None)
    counts = {"k": side.count("k")}
    if is_old:
        fn_keys = [key for key in ("activation_fn", "activation_fn_str") if side.values.get(key) is not None]
        functions = {side.choice(key, ("relu", TOPK)) for key in fn_keys} or {"relu"}
        if len(functions) > 1:
            raise side.error(fn_keys[0], f"and `{fn_keys[1]}` is another: only one can be right")
        if TOPK in functions and architecture in ("standard", TOPK):
            architecture = TOPK
            counts["activation_fn_kwargs.k"] = side.count("activation_fn_kwargs.k")
            side.must_be("activation_fn_kwargs.signed", False)
        elif TOPK in functions:
            raise side.error(fn_keys[0], f"relu is read where the architecture is {architecture}")
    is_transcoder = "transcoder" in architecture
    if ("skip" in architecture) != (W_SKIP in present):
        raise side.error("architecture", f"the file has {'a' if W_SKIP in present else 'no'} W_skip")
    gate = {"standard": RELU, TOPK: TOPK, ABSTOPK: ABSTOPK, GATED: GATED}.get(architecture, JUMPRELU if JUMPRELU in architecture else RELU)
    if gate in (TOPK, ABSTOPK):
        counts["--k"] = context.k
        count = _same_count(side.label, counts, f"the architecture is {architecture}, and nothing says its k")
    else:
        count = None
        if context.k is not None:
            raise WeightsError(f"{side.label}: --k is given, but the architecture is {architecture}")
    normalised = side.values.get("normalize_activations")
    if type(normalised) is bool:  # before it was a text
        side.values["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    kinds = {"none": IDENTITY, "constant_norm_rescale": UNIT_RMS, "layer_norm": LAYER_NORM, "expected_average_only_in": SCALED}
    kind = kinds[side.choice("normalize_activations", kinds, "none")]
    if kind == SCALED and context.input_scale is None:
        raise side.error("normalize_activations", "the factor of it is not in the repo: give it with --input-scale")
    if kind == IDENTITY:  # SAELens's directory overrides it for some repos
        kind = context.normalize or (IDENTITY if context.input_scale is None else SCALED)
    by_norm = side.flag("rescale_acts_by_decoder_norm", False)
    if by_norm and gate not in (TOPK, ABSTOPK):
        raise side.error("rescale_acts_by_decoder_norm", f"it is read with a top-k gate, and the architecture is {architecture}")
    side.choice("reshape_activations", ("none", "hook_z"), "none")  # a flat input has the same numbers
    subtracts = side.flag("apply_b_dec_to_input", True) and not is_transcoder
    unused = (K,) if K in present else ()
    return Settings(
        gate, count, by_decoder_norm=by_norm, normalised=kind, factor=context.input_scale or 1.0, back=1 / (context.input_scale or 1.0),
        minus_b_dec=subtracts,
        restores=not (is_transcoder and kind in (UNIT_RMS, LAYER_NORM)), unused=unused,
    )  # fmt: skip


def dictionary_learning(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """dictionary_learning's config.json: the class of the dictionary."""
    jumprelu = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    kind = side.choice("trainer.dict_class", ("AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder", *jumprelu))
    unused = tuple(part for part in (K, UNUSED, *((THRESHOLD,) if kind not in jumprelu else ())) if part in present)
    if kind == "AutoEncoderTopK":
        counts = {"trainer.k": side.count("trainer.k"), "the tensor k": k, "--k": context.k}
        return Settings(TOPK, _same_count(side.label, counts, "nothing says its k"), minus_b_dec=True, unused=unused)
    gate = JUMPRELU if kind in jumprelu else GATED if kind == "GatedAutoEncoder" else RELU
    subtracts = kind != "JumpReluAutoEncoder" or side.flag("trainer.apply_b_dec_to_input", False)
    return Settings(gate, minus_b_dec=subtracts, unused=unused)


def llama_scope(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """lm-saes's hyperparams.json or config.json: JumpReLU of an input that is scaled to the average norm of the root of d_model."""
    side.choice("act_fn", (JUMPRELU,), JUMPRELU)
    side.choice("norm_activation", ("dataset-wise",))
    side.must_be("use_decoder_bias", True)
    side.must_be("use_glu_encoder", False)
    d_model = side.count("d_model")
    if d_model is None:
        raise side.error("d_model", "it says what the input is scaled to")
    average = side.number("dataset_average_activation_norm.in", positive=True)
    average_out = average if side.values.get("dataset_average_activation_norm.out") is None else side.number("dataset_average_activation_norm.out", positive=True)
    factor = d_model**0.5 / average
    notes: tuple[str, ...] = ()
    if side.flag("sparsity_include_decoder_norm", False):
        notes = (
            "sparsity_include_decoder_norm is true: lm-saes holds pre-activations times the norms of W_dec's rows against the threshold; "
            "here, as in SAELens, the norms are taken to be 1",
        )
    subtracts = side.flag("apply_decoder_bias_to_pre_encoder", False)
    common = Settings(JUMPRELU, normalised=SCALED, factor=factor, back=average_out / d_model**0.5, minus_b_dec=subtracts, notes=notes)
    if LOG_THRESHOLD in present:
        return common
    return common._replace(level=side.number("jump_relu_threshold"), level_factor=factor)


def sparsify(side: Side, present: Collection[str], k: int | None, context: Context) -> Settings:
    """sparsify's cfg.json. Whether b_dec is subtracted goes by `transcode`, as in sparsify itself; SAELens goes by normalize_decoder."""
    activation = side.choice("activation", (TOPK, GROUPMAX), TOPK)
    is_signed = side.flag("signed", False)
    if is_signed and activation == GROUPMAX:
        raise side.error("signed", f"false is read where the activation is {GROUPMAX}")
    count = _same_count(side.label, {"k": side.count("k"), "--k": context.k}, "nothing says its k")
    if side.flag("skip_connection", False) != (W_SKIP in present):
        raise side.error("skip_connection", f"the file has {'a' if W_SKIP in present else 'no'} W_skip")
    return Settings(ABSTOPK if is_signed else activation, count, minus_b_dec=not side.flag("transcode", False))


# --- their keys -------------------------------------------------------------------------------------------------------

SAELENS = SideFile(
    "cfg.json",
    tuple("""architecture activation_fn activation_fn_str activation_fn_kwargs.k activation_fn_kwargs.signed k apply_b_dec_to_input
        normalize_activations rescale_acts_by_decoder_norm reshape_activations
        sae_lens_version metadata.sae_lens_version""".split()),
    tuple("""act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method
        begin_batch_token begin_sequence_token buffer_size_gb cached_activations_path checkpoint_path column_name compile_llm compile_sae
        context_size d_head d_in d_out d_sae data_dir data_files dataset dataset_name dataset_path dataset_trust_remote_code dead_feature_estimation_method
        dead_feature_threshold dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init
        device disable_concat_sequences dtype eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens expansion_factor
        feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method finetuning_scaling_factor finetuning_tokens from_pretrained_path
        hf_hook_name hf_hook_name_out hf_is_private_repo hf_num_shards hf_repo_id hf_revision hook_eval hook_head_index hook_head_index_out
        hook_layer hook_layer_out hook_name hook_name_out hook_point hook_point_eval hook_point_head_index hook_point_layer
        init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode
        jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_lambda l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode
        llm_device log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger logger.* lp_norm lr
        lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps matryoshka_widths max_sparsity_penalty metadata.* model_batch_size
        model_class_name model_from_pretrained_kwargs model_from_pretrained_kwargs.* model_kwargs model_kwargs.* model_name mse_loss_normalization
        n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id new_cached_activations_path
        noise_scale normalize_sae_decoder num_proc output_path pre_act_loss_coefficient prefetch_llm_batches prepend_bos pretokenize_batch_size
        resume resume_from_checkpoint run_name sae sae.* sae_compilation_mode sae_lens_training_version save_final_checkpoint save_path
        scale_sparsity_penalty_by_decoder_norm seed seqpos seqpos_slice sequence_separator_token shuffle sparsity_loss split
        store_batch_size store_batch_size_prompts streaming target_l0 tokenizer_name tokens_per_buffer topk_threshold_lr total_training_samples
        total_training_steps total_training_tokens train_batch_size train_batch_size_samples train_batch_size_tokens training_tokens
        use_cached_activations use_chat_formatting use_ghost_grads use_matryoshka_aux_loss use_sparse_activations uses_scaling_factor verbose wandb_entity wandb_id
        wandb_log_frequency wandb_project warm_up_steps""".split()),
)  # fmt: skip

DICTIONARY_LEARNING = SideFile(
    "config.json",
    ("trainer.dict_class", "trainer.k", "trainer.apply_b_dec_to_input"),
    tuple("""buffer buffer.* trainer.activation_dim trainer.anneal_end trainer.anneal_start trainer.auxk_alpha trainer.bandwidth trainer.decay_start
        trainer.device trainer.dict_size trainer.group_fractions trainer.group_sizes trainer.group_weights trainer.initial_sparsity_penalty
        trainer.k_anneal_steps trainer.l1_penalty trainer.layer trainer.lm_name trainer.lr trainer.n_sparsity_updates trainer.p_end
        trainer.p_start trainer.resample_steps trainer.seed trainer.sparsity_function trainer.sparsity_penalty trainer.sparsity_queue_length
        trainer.sparsity_warmup_steps trainer.steps trainer.submodule_name trainer.target_l0 trainer.threshold_beta
        trainer.threshold_start_step trainer.top_k_aux trainer.trainer_class trainer.wandb_name trainer.warmup_steps""".split()),
)  # fmt: skip

_LM_SAES = (
    tuple("""act_fn apply_decoder_bias_to_pre_encoder d_model dataset_average_activation_norm.in dataset_average_activation_norm.out jump_relu_threshold norm_activation
        sparsity_include_decoder_norm use_decoder_bias use_glu_encoder""".split()),
    tuple("""d_sae decoder_exactly_fixed_norm device dtype expansion_factor force_unit_decoder_norm hook_point_in
        hook_point_out init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose init_search jumprelu_threshold_window k_warmup_steps
        l1_coefficient l1_coefficient_warmup_steps lp lp_threshold model_name promote_act_fn_dtype remove_gradient_parallel_to_decoder_directions
        sae_pretrained_name_or_path sae_type sparsity_threshold_for_triton_spmm_kernel strict_loading top_k tp_size use_batch_norm_mse
        use_ghost_grads use_triton_kernel""".split()),
)  # fmt: skip
LLAMA_SCOPE, LLAMA_SCOPE_R1 = SideFile("../hyperparams.json", *_LM_SAES), SideFile("config.json", *_LM_SAES)

SPARSIFY = SideFile(
    "cfg.json",
    ("activation", "k", "signed", "skip_connection", "transcode"),
    tuple("d_in expansion_factor multi_topk normalize_decoder num_latents".split()),
)

HOOK_Z = SideFile(
    "{stem}_cfg.json",
    (),
    tuple("""act_name act_size anthropic_resample_batches b_dec_init batch_size beta1 beta2 buffer_batches buffer_mult buffer_size concat_heads
        d_model device dict_mult dict_size enc_dtype eval_every l1_coeff l1_warmup lr layer model_batch_size model_name name num_batches
        num_tokens re_init_every remove_rare_dir resample_factor resample_scheme save_state_dict_every sched_epochs sched_finish
        sched_lr_factor sched_type sched_warmup_epochs seed seq_len site type version bias_resample_factor gram_shmidt_trail l1_loss
        num_resamples test_batch_size reinit head anthropic_neuron_resample_scale anthropic_resample_last dead_direction_cutoff
        wandb_project_name wandb_entity test contiguous per_head""".split()),
)  # fmt: skip
