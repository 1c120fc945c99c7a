"""Engines that a user would run on a CPU in our place, each behind one call: ids of a prompt in, ids of its answer out.

They read the pair's GGUF files. What an engine cannot do is a sentence among its notes, and the arms that it can run stay.
None keeps a prompt's cache for the next call, or an arm would find its prefill done by the one before.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, quants

from gammatune.errors import clip
from gammatune.files import read_json
from gammatune.models.gguf import INDEX
from gammatune.models.sources import Files

#: What OpenVINO's GGUF reader takes, and what other tensors become for it: of those types the one that loses least
READABLE = {GGMLQuantizationType[name] for name in ("F32", "F16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0")}
SUBSTITUTE = GGMLQuantizationType.Q8_0
ALONE, ADAPTIVE = "autoregressive", "adaptive"  # how a way decodes, where it is at no fixed length
CONFIDENCE = 0.4  # the draft's probability under which an engine's adaptive arm stops drafting: GammaTune+'s tau
MOST_DRAFTED = 16  # by llama.cpp's adaptive arm, which needs a longest block


@dataclass(frozen=True)
class Weights:
    """A GGUF file."""

    path: Path
    kinds: frozenset[GGMLQuantizationType]  # of its tensors
    count: int  # of weights
    size: int  # their bytes, scales included

    @property
    def bits(self) -> float:
        """Of a weight."""
        return 8 * self.size / self.count


@dataclass(frozen=True)
class Job:
    """What every engine is asked for. Decoding is greedy."""

    target: Weights
    draft: Weights
    ends: tuple[int, ...]  # ids that end an answer
    gammas: tuple[int, ...]  # fixed numbers of draft tokens
    tokens: int  # longest answer
    context: int  # tokens of the longest text, prompt and answer
    threads: int
    read: Callable[[str], list[int]]  # ids of an answer's text


@dataclass(frozen=True)
class Way:
    """One way of an engine to answer."""

    decoding: str  # autoregressive, fixed_N or adaptive
    bits: tuple[float, ...]  # of the target's weights, and of the draft's where there is one
    answer: Callable[[list[int]], list[int]]


@dataclass
class Offer:
    """What an engine can do here."""

    ways: list[Way] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # a sentence each: what it refuses, what was changed for it


@dataclass(frozen=True)
class Engine:
    """A Python package that decodes GGUF files on a CPU."""

    title: str
    package: str  # its name for pip
    module: str  # its name for Python
    load: Callable[[Job], Offer]

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return version(self.package)


def weigh(files: Files) -> Weights:
    """The weights of a checkpoint that is a GGUF file."""
    tensors = read_json(files.folder / INDEX, "fetch the checkpoint again")["tensors"].values()
    kinds = [GGMLQuantizationType(tensor["type"]) for tensor in tensors]
    return count_weights(files.gguf, kinds, [prod(tensor["shape"]) for tensor in tensors])


def count_weights(path: Path, kinds: list[GGMLQuantizationType], stored: list[int]) -> Weights:
    """stored: numbers of a tensor of a plain type, bytes of a quantised one."""
    count = size = 0
    for kind, units in zip(kinds, stored, strict=True):
        block, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = units if block == 1 else units // block_bytes
        count += blocks * block
        size += blocks * block_bytes
    return Weights(path, frozenset(kinds), count, size)


def substitute(weights: Weights, path: Path) -> Weights:
    """A copy of a file with every tensor of a type that OpenVINO does not read as SUBSTITUTE; all else stays as it is."""
    reader = GGUFReader(weights.path)
    writer = GGUFWriter(path, reader.fields[Keys.General.ARCHITECTURE].contents())
    for entry in reader.fields.values():
        if entry.name != Keys.General.ARCHITECTURE and not entry.name.startswith("GGUF."):  # written by the writer itself
            inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(entry.name, entry.contents(), entry.types[0], sub_type=inner)
    kinds, stored = [], []
    for tensor in reader.tensors:
        kind, data = GGMLQuantizationType(tensor.tensor_type), tensor.data
        if kind not in READABLE:
            kind, data = SUBSTITUTE, quants.quantize(quants.dequantize(data, kind), SUBSTITUTE)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        kinds.append(kind)
        stored.append(data.size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count_weights(path, kinds, stored)


def load_openvino(job: Job) -> Offer:
    """The target alone, and with the draft at each fixed length and under OpenVINO's own threshold of confidence.

    Only a target may be a GGUF file, so both models are saved in OpenVINO's own form first, in a folder that is gone after.
    """
    offer = Offer()
    with tempfile.TemporaryDirectory() as folder:
        target, draft = (Path(folder) / role for role in ("target", "draft"))
        try:
            bits = (run_apart(save_openvino, job.target, target),)
            alone = open_openvino(target, job.threads)
        except Exception as error:  # the engine's own classes differ by version
            return Offer([], [f"OpenVINO GenAI refuses the target ({last_line(error)}), so it has no arms."])
        offer.ways.append(way_of_openvino(alone, job, ALONE, bits))
        try:
            readable = make_readable(job.draft, Path(folder) / "draft.gguf", offer.notes)
            bits += (run_apart(save_openvino, readable, draft),)
            assisted = assist_openvino(target, draft, job.threads)
        except Exception as error:
            offer.notes.append(f"OpenVINO GenAI refuses the draft ({last_line(error)}), so it has no speculative arms.")
            return offer
    for gamma in job.gammas:
        offer.ways.append(way_of_openvino(assisted, job, f"fixed_{gamma}", bits, num_assistant_tokens=gamma))
    offer.ways.append(way_of_openvino(assisted, job, ADAPTIVE, bits, assistant_confidence_threshold=CONFIDENCE))
    return offer


def run_apart(work: Callable, *args):
    """work(*args) in a process of its own, which takes the memory of reading a GGUF file away with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def make_readable(draft: Weights, path: Path, notes: list[str]) -> Weights:
    """The draft, or where OpenVINO cannot read all of it a copy at `path` that it can, with a note."""
    if odd := draft.kinds - READABLE:
        names = ", ".join(sorted(kind.name for kind in odd))
        notes.append(
            f"OpenVINO GenAI does not read the draft's {names} tensors, so they were made {SUBSTITUTE.name} for it."
        )
        return run_apart(substitute, draft, path)
    return draft


def save_openvino(weights: Weights, folder: Path) -> float:
    """The model of a GGUF file in OpenVINO's own form, in a folder that is made; the bits that a weight has there."""
    folder.mkdir()
    path = folder / "model.gguf"
    path.symlink_to(weights.path.resolve())  # the form is saved beside the name that was given
    open_openvino(path, 1, enable_save_ov_model=True)
    return 8 * (folder / "openvino_model.bin").stat().st_size / weights.count


def assist_openvino(target: Path, draft: Path, threads: int):
    import openvino_genai

    drafting = openvino_genai.draft_model(str(draft), "CPU", INFERENCE_NUM_THREADS=threads)
    return open_openvino(target, threads, draft_model=drafting)


def open_openvino(path: Path, threads: int, **settings):
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    return openvino_genai.LLMPipeline(
        str(path), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads, **settings
    )


def way_of_openvino(pipeline, job: Job, decoding: str, bits: tuple[float, ...], **drafting) -> Way:
    import openvino
    import openvino_genai

    ends = {"eos_token_id": job.ends[0], "stop_token_ids": set(job.ends)}
    settings = openvino_genai.GenerationConfig(max_new_tokens=job.tokens, do_sample=False, **ends, **drafting)

    def answer(prompt: list[int]) -> list[int]:
        return list(pipeline.generate(openvino.Tensor(np.array([prompt], dtype=np.int64)), settings).tokens[0])

    return Way(decoding, bits, answer)


def load_llama_cpp(job: Job) -> Offer:
    """The target alone, and with the draft at each fixed length and under llama.cpp's own threshold, p-min.

    Its server reads these settings when it starts, so each way is a server of its own, with the models in memory again.
    """
    offer = Offer()
    try:
        offer.ways.append(way_of_llama_cpp(job, ALONE))
    except Exception as error:
        return Offer([], [f"llama.cpp refuses the target ({last_line(error)}), so it has no arms."])
    drafting = {f"fixed_{gamma}": {"n_max": gamma, "p_min": 0.0} for gamma in job.gammas}
    drafting[ADAPTIVE] = {"n_max": MOST_DRAFTED, "p_min": CONFIDENCE}
    try:
        offer.ways += [way_of_llama_cpp(job, decoding, **settings) for decoding, settings in drafting.items()]
    except Exception as error:
        offer.notes.append(f"llama.cpp refuses the draft ({last_line(error)}), so it lacks speculative arms.")
    return offer


def way_of_llama_cpp(job: Job, decoding: str, **drafting) -> Way:
    """drafting: n_max and p_min of its draft model; none for the target alone. Its answers are text, read as ids again."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cache_ram_mib = str(job.target.path), job.context + 64, 1, 0
    params.verbosity = 1  # errors alone
    processors, bits = [params.cpuparams, params.cpuparams_batch], (job.target.bits,)
    if drafting:
        draft, bits = params.speculative.draft, (job.target.bits, job.draft.bits)
        draft.mparams.path, draft.n_max, draft.n_min, draft.p_min = (
            str(job.draft.path),
            drafting["n_max"],
            0,
            drafting["p_min"],
        )
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        processors += [draft.cpuparams, draft.cpuparams_batch]
    for processor in processors:
        processor.n_threads = job.threads
    server = xllamacpp.Server(params)
    settings = {"max_tokens": job.tokens, "temperature": 0.0, "cache_prompt": False}

    def answer(prompt: list[int]) -> list[int]:
        return job.read(server.handle_completions({"prompt": prompt, **settings})["choices"][0]["text"])

    return Way(decoding, bits, answer)


def last_line(error: BaseException) -> str:
    """Of the engine's words, after those that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return clip((lines or [type(error).__name__])[-1].rstrip("."), 300)


ENGINES = (
    Engine("OpenVINO GenAI", "openvino-genai", "openvino_genai", load_openvino),
    Engine("llama.cpp", "xllamacpp", "xllamacpp", load_llama_cpp),
)
