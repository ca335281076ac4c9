"""A model's name -> a frozen `Base` on its device: weights, tokenizer, digest, licence.

    base = load_base("smollm2-135m")
    pick_targets(base.model, "all-linear")      # ("model.layers.0.self_attn.q_proj", ...)

Only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shepherd.errors import ModelError, ResourceError, UsageError, did_you_mean, missing_extra, plural
from shepherd.model.card import licence_of
from shepherd.model.convert import quiet_transformers
from shepherd.model.digest import model_digest, read_json, tokenizer_digest, tokenizer_files, weight_files
from shepherd.model.fetch import BUILTIN, resolve
from shepherd.model.threads import bfloat16_speedup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Below this, rounding the base to bfloat16 does not buy enough time to be worth its noise.
BFLOAT16_WORTH = 1.3

# Older libraries saved these, and nobody reads them any more.
_FORMER_BUFFERS = (".inv_freq", ".attn.bias", ".masked_bias")


@dataclass(frozen=True, eq=False)
class Base:
    """The frozen model that all clients share: no parameter needs a gradient, evaluation mode.

    `digest` names the files it was loaded from (`digest.model_digest`), whatever `dtype` they were loaded in;
    `tokenizer_digest` those that turn text into ids, some of which are no part of `digest`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str
    tokenizer_digest: str
    device: torch.device
    dtype: torch.dtype
    licence: str
    path: Path

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()


def load_base(
    base: str, *, revision: str = "", device: str = "auto", dtype: str = "auto", quantize: str = "none"
) -> Base:
    """Load and freeze a causal language model.

    Raises ModelError when it is not here, not whole, or not a causal LM that transformers knows; ResourceError when
    the device is not there or too small.
    """
    place = pick_device(device)
    check_quantize(quantize, place)
    folder = resolve(base, revision)
    check_folder(folder)
    precision = pick_dtype(dtype, place)
    tokenizer = load_tokenizer(folder)
    model = _load_model(folder, place, precision, quantize)
    check_fit(folder, model.get_input_embeddings().weight.shape[0], tokenizer)
    model.requires_grad_(False)
    model.eval()
    return Base(
        model=model,
        tokenizer=tokenizer,
        name=base,
        digest=model_digest(folder),
        tokenizer_digest=tokenizer_digest(folder),
        device=place,
        dtype=precision,
        licence=BUILTIN[base].licence if base in BUILTIN else licence_of(folder),
        path=folder,
    )


# Where and how


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU. A device that was asked for and is not there is a ResourceError."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device: {device!r}", hint="auto, cpu, mps, cuda or cuda:N") from error
    if place.type == "cuda" and not cuda:
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise ResourceError(
            f"device {device!r} was asked for, but {built}", hint='set model.device = "auto", or install a CUDA torch'
        )
    if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
        there = plural(count, "CUDA device")
        raise ResourceError(f"device {device!r} was asked for, and torch finds {there}", hint="count from 0")
    if place.type == "mps" and not mps:
        raise ResourceError("device 'mps' was asked for, but there is none", hint='set model.device = "auto"')
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Precision of the base. `auto`: bfloat16 where CUDA computes in it, and on a CPU where a probe finds it faster."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype in known:
        return known[dtype]
    if dtype != "auto":
        raise UsageError(f"unknown dtype: {dtype!r}.{did_you_mean(dtype, known)}", hint="auto, float32 or bfloat16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and bfloat16_speedup() >= BFLOAT16_WORTH:
        return torch.bfloat16
    return torch.float32


def check_quantize(quantize: str, device: torch.device) -> None:
    """Raise ResourceError or UsageError unless a base can be loaded in these bits on this device."""
    if quantize == "none":
        return
    if quantize not in ("4bit", "8bit"):
        raise UsageError(f"unknown quantize: {quantize!r}", hint="none, 8bit or 4bit")
    if device.type != "cuda":
        raise ResourceError(
            f"quantize = {quantize!r} needs a CUDA device, and the base goes to {device.type!r}",
            hint='set model.quantize = "none"',
        )
    for module in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra(module, "quant")


# Is it a model, and is it whole


def check_folder(folder: Path) -> None:
    """Raise ModelError, saying what is missing, unless `folder` holds a config, safetensors and a tokenizer."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            named = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
            raise ModelError(f"{folder} is an adapter, not a base model", hint=f"set model.base to {named}")
        raise ModelError(
            f"{folder} is not a model: it has no config.json",
            hint="model.base is the folder that holds config.json, *.safetensors and tokenizer.json",
        )
    config = read_json(folder / "config.json")
    _check_weights(folder)
    if not tokenizer_files(folder):
        raise ModelError(
            f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model nor vocab.json is there",
            hint="copy the tokenizer files of the original model into the folder",
        )
    _check_architecture(folder, config)


def _check_weights(folder: Path) -> None:
    files = weight_files(folder)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(
            f"{folder} is not whole: {len(missing)} of {len(files)} weight files are missing, e.g. {missing[0]}",
            hint="copy or pull the model again",
        )
    if not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {pickled[0]}, which can hold code and is not loaded" if pickled else "no *.safetensors file"
        raise ModelError(
            f"{folder} has no weights: {found}", hint="save the model with save_pretrained, which writes safetensors"
        )

    for path in files:
        try:
            with safe_open(path, "numpy"):  # reads the header, and compares it with the size of the file
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read whole: {error}", hint="copy or pull the model again") from None


def check_parameters(folder: Path, model: PreTrainedModel) -> None:
    """Raise ModelError where a parameter of `model`, which may be on the meta device, is in no file of `folder`.

    Only headers are read. Where the files hold names that the model does not have, transformers renames them, and what
    is missing is found when they are loaded.
    """
    held: set[str] = set()
    for path in weight_files(folder):
        with safe_open(path, "numpy") as file:
            held |= {name for name in file.keys() if not name.endswith(_FORMER_BUFFERS)}  # noqa: SIM118, it is no dict
    together: dict[int, set[str]] = {}  # tied parameters are one, and one name is enough
    for name, parameter in model.named_parameters(remove_duplicate=False):
        together.setdefault(id(parameter), set()).add(name)
    known = set().union(*together.values(), (name for name, _ in model.named_buffers()))
    held = {name if name in known else f"{model.base_model_prefix}.{name}" for name in held}  # saved without its head
    if held <= known:
        _refuse_missing(folder, [min(names) for names in together.values() if not names & held])


def _refuse_missing(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise ModelError(
            f"{folder} is not whole: {plural(len(missing), 'weight')} in no file, e.g. {min(missing)}",
            hint="copy or pull the model again",
        )


def _check_architecture(folder: Path, config: dict[str, Any]) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        reason = "it needs code of its own, which is never run" if "auto_map" in config else "transformers has no such"
        raise ModelError(
            f"{folder}: model type {kind!r} cannot be loaded: {reason}",
            hint="use an architecture that transformers ships, or a newer transformers",
        )
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING or config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder}: model type {kind!r} is not a causal language model", hint="choose one that continues text"
        )
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # Validation of configs raises what the field's owner thought fit.
        raise ModelError(f"{folder / 'config.json'} does not describe a {kind} model: {error}") from error


# Load


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # Broken files surface as whatever the tokenizer's class stumbled over.
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded: {error}", hint="copy the tokenizer files again"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: its tokenizer has no end token, so a model could not learn where to stop",
            hint='name it in tokenizer_config.json, e.g. "eos_token": "</s>"',
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_model(folder: Path, device: torch.device, dtype: torch.dtype, quantize: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if quantize == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif quantize == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        # Every product of a bfloat16 base would say that it rounds to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize != "none":
        options["device_map"] = {"": device}
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        _refuse_missing(folder, list(info["missing_keys"]))
        return model if quantize != "none" else model.to(device)
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(folder, device) from error
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise _too_large(folder, device) from error
        raise ModelError(f"{folder}: the model cannot be loaded: {error}", hint="copy or pull it again") from error


def _too_large(folder: Path, device: torch.device) -> ResourceError:
    size = sum(path.stat().st_size for path in weight_files(folder)) / 2**30
    return ResourceError(
        f"not enough memory on {device} for {folder}: its weights are {size:.1f} GiB on disk",
        hint='choose a smaller model, model.dtype = "bfloat16", or model.quantize = "4bit" on CUDA',
    )


def check_fit(folder: Path, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the tokenizer writes tokens that a model with so many embeddings does not have."""
    if tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"{folder}: the tokenizer's end token has id {tokenizer.eos_token_id}, but the model has {rows} embeddings",
            hint="the tokenizer belongs to another model: copy the right one into the folder",
        )
    if len(tokenizer) <= rows:
        return
    # Control tokens that no template writes may lie beyond: Gemma 3's text models keep the one for pictures.
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unused = {token for token in control if token not in str(tokenizer.chat_template)} - {tokenizer.bos_token}
    beyond = [token for token, id in tokenizer.get_vocab().items() if id >= rows and token not in unused]
    if beyond:
        raise ModelError(
            f"{folder}: {len(beyond)} of the tokenizer's tokens, such as {min(beyond)!r}, are beyond the {rows} "
            "embeddings of the model",
            hint="the tokenizer belongs to another model: copy the right one into the folder",
        )


# What an adapter can sit on


def is_linear(module: nn.Module) -> bool:
    """A linear layer that can carry an adapter: torch's, bitsandbytes' (its subclasses), GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def linear_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers inside the decoder's blocks, in model order; no embeddings, no output head."""
    prefix, blocks = _blocks(model)
    return [f"{prefix}.{name}" for name, module in blocks.named_modules() if is_linear(module)]


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name: the longest list of modules that is in no other list.

    Experts are lists inside blocks, and a picture tower has blocks of its own, so the search starts at the decoder.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    names = {module: name for name, module in model.named_modules()}
    found: list[tuple[str, nn.ModuleList]] = []
    for module in (decoder if decoder in names else model).modules():
        if isinstance(module, nn.ModuleList):
            name = names[module]
            if not any(name.startswith(outer + ".") for outer, _ in found):
                found.append((name, module))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks to adapt", hint="use a decoder-only transformer"
        )
    return max(found, key=lambda pair: len(pair[1]))


def pick_targets(model: nn.Module, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Full module names to adapt, in model order: `"all-linear"`, or names such as "q_proj" or "mlp.down_proj".

    A name means every linear layer of the blocks whose full name ends with it. Raises ModelError for one that means
    none, with the names there are.
    """
    names = linear_names(model)
    if targets == "all-linear":
        if not names:
            raise ModelError(f"{type(model).__name__} has no linear layer in its blocks", hint="choose another model")
        return tuple(names)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise UsageError("lora.targets is empty", hint='set lora.targets = "all-linear"')
    short = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    for target in wanted:
        if not any(_means(target, name) for name in names):
            raise ModelError(
                f"lora.targets: this model has no linear layer {target!r}.{did_you_mean(target, short)}",
                hint=f"its linear layers: {', '.join(short)}",
            )
    return tuple(name for name in names if any(_means(target, name) for target in wanted))


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")
