"""Loading of a frozen base model onto its device: weights, tokenizer, digest, licence.

    base = load_base("smollm2-135m")

Only safetensors files are read, and code in a model folder is never run.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shepherd.errors import ModelError, ResourceError, UsageError, did_you_mean, missing_extra, plural
from shepherd.model import catalogue
from shepherd.model.digest import model_digest, tokenizer_digest, weight_files
from shepherd.model.fetch import public_name, resolve
from shepherd.model.folder import inspect_folder
from shepherd.model.licence import licence_of
from shepherd.model.outline import AGAIN, judge, load_config
from shepherd.model.quiet import first_line, quiet_transformers
from shepherd.model.threads import bfloat16_speedup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Below this speedup, the rounding noise of a bfloat16 base outweighs the time that it saves.
BFLOAT16_WORTH = 1.3


@dataclass(frozen=True, eq=False)
class Base:
    """The frozen base model, identical for all clients: no gradients, evaluation mode.

    `public_name` identifies it to other tools. `digest` identifies the files it was loaded from, independent of
    `dtype` (`digest.model_digest`); `tokenizer_digest` identifies the files that map text to token ids, some of which
    are not part of `digest`.
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
    public_name: str

    @property
    def num_parameters(self) -> int:
        """The number of parameters of the base."""
        return self.model.num_parameters()


def load_base(
    base: str, *, revision: str = "", device: str = "auto", dtype: str = "auto", quantize: str = "none"
) -> Base:
    """Load and freeze a causal language model.

    Raises ModelError when it is missing, incomplete, or not a causal LM known to transformers; ResourceError when the
    device is missing or too small.
    """
    place = pick_device(device)
    check_quantize(quantize, place)
    folder = resolve(base, revision)
    check_folder(folder)
    precision = pick_dtype(dtype, place)
    tokenizer = load_tokenizer(folder)
    model = _load_model(folder, place, precision, quantize)
    check_fit(folder, model.get_input_embeddings().get_parameter("weight").shape[0], tokenizer)
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
        licence=catalogue.BUILTIN[base].licence if base in catalogue.BUILTIN else licence_of(folder),
        path=folder,
        public_name=public_name(base, revision, folder),
    )


# Device and precision


def pick_device(device: str) -> torch.device:
    """The device to compute on; `auto`: CUDA, then MPS, then the CPU. Raises ResourceError for a missing device."""
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
    """Precision of the base. `auto`: bfloat16 where CUDA supports it, and on a CPU where a probe finds it faster."""
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
    """Raise ResourceError or UsageError unless a base can be quantised like this on this device."""
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


# Checks of the folder


def check_folder(folder: Path) -> tuple[str, ...]:
    """Check a model folder; returns notes on its unused content.

    Raises ModelError unless it holds a causal language model known to transformers, all its weights in full precision,
    and a tokenizer.
    """
    notes = inspect_folder(folder)
    load_config(folder)
    return notes


# Load


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ModelError when it is unreadable or has no end token."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # Broken files raise errors of many types, depending on the tokenizer class.
        if "custom code" in str(error):
            raise ModelError(
                f"{folder}: its tokenizer needs code of its own (auto_map in its config), which is never run",
                hint="where tokenizer.json holds the whole of it: remove auto_map and tokenizer_class from a copy",
            ) from error
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded: {first_line(error)}", hint="copy the tokenizer files again"
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
        # Every product of a bfloat16 base would log a warning of rounding to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize != "none":
        options["device_map"] = {"": device}
    try:
        with quiet_transformers():
            loader: Any = AutoModelForCausalLM  # its type omits the loading info
            model, info = loader.from_pretrained(
                folder,
                config=load_config(folder),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `judge` checks the shapes, with a clearer message
                **options,
            )
        judge(folder, model, info)
        return model if quantize != "none" else model.to(device)
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(folder, device) from error
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise _too_large(folder, device) from error
        raise ModelError(f"{folder}: the model cannot be loaded: {first_line(error)}", hint=AGAIN) from error


def _too_large(folder: Path, device: torch.device) -> ResourceError:
    size = sum(path.stat().st_size for path in weight_files(folder)) / 2**30
    return ResourceError(
        f"not enough memory on {device} for {folder}: its weights are {size:.1f} GiB on disk",
        hint='choose a smaller model, model.dtype = "bfloat16", or model.quantize = "4bit" on CUDA',
    )


def check_fit(folder: Path, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the tokenizer has token ids beyond the `rows` embeddings of the model."""
    if tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"{folder}: the tokenizer's end token has id {tokenizer.eos_token_id}, but the model has {rows} embeddings",
            hint="the tokenizer belongs to another model: copy the right one into the folder",
        )
    if len(tokenizer) <= rows:
        return
    # Control tokens that no template uses may lie beyond them, such as the image token of Gemma 3's text models.
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unused = {token for token in control if token not in str(tokenizer.chat_template)} - {tokenizer.bos_token}
    beyond = [token for token, id in tokenizer.get_vocab().items() if id >= rows and token not in unused]
    if beyond:
        raise ModelError(
            f"{folder}: {len(beyond)} of the tokenizer's tokens, such as {min(beyond)!r}, are beyond the {rows} "
            "embeddings of the model",
            hint="the tokenizer belongs to another model: copy the right one into the folder",
        )
