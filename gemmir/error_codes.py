"""
The one table of gemmir's error codes: what each means, where it comes from and what helps.

A new code is one entry here, under the class that raises it. `gemmir.errors` takes the list of codes from here,
`gemmir errors` prints entries, and `python -m gemmir.errors_page docs/errors.md` writes the page.
"""

from __future__ import annotations

from gemmir.records import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """
    What is to be known of a code.

    `title` is a noun phrase, `raised_as` the name of a class of `gemmir.errors`, `cause` when it happens, `fix` the
    usual way out. A message has the values, the rule and the fix of its own case.
    """

    title: str
    raised_as: str
    cause: str
    fix: str


_INPUT = {
    "GMR-I001": ErrorCode(
        "wrong dtype",
        "InputError",
        "A tensor, or a type by its name, is none of those that the program, the call or the option takes.",
        "pass the dtype that the message names; nothing is cast silently",
    ),
    "GMR-I002": ErrorCode(
        "shapes that disagree",
        "InputError",
        "Two tensors give one dimension two sizes, or a tensor has another shape than the program declares.",
        "the message shows both shapes and the dimension",
    ),
    "GMR-I003": ErrorCode(
        "misaligned address or stride",
        "InputError",
        "An address, or the distance of two rows, is no multiple of 16 bytes, or of what a vector load needs.",
        "TMA wants multiples of 16 bytes: pad, or pass `.contiguous()`",
    ),
    "GMR-I004": ErrorCode(
        "wrong device, or devices mixed",
        "InputError",
        "A tensor is on the CPU, or two tensors are on different GPUs.",
        "move all tensors to one Hopper GPU",
    ),
    "GMR-I005": ErrorCode(
        "wrong number or kind of arguments",
        "InputError",
        "An argument is missing, one too many, or no dense tensor; or what is to be compiled is no program.",
        "pass one dense tensor for each input of the function, in its order",
    ),
    "GMR-I006": ErrorCode(
        "unsupported memory layout of a tensor",
        "InputError",
        "The strides of a tensor are not those of the layout that the kernel reads or writes.",
        "the message names the strides that are accepted; scales: `gemmir.align_scales`",
    ),
    "GMR-I007": ErrorCode(
        "a size that the hardware cannot address",
        "InputError",
        "A dimension, a stride or a number of tiles is over what a tensor map, a coordinate or a grid can hold.",
        "split the problem",
    ),
    "GMR-I008": ErrorCode(
        "an output that overlaps an input",
        "InputError",
        "Some bytes of `out` are bytes of an input too.",
        "pass another `out`, or none",
    ),
    "GMR-I009": ErrorCode(
        "an option with an illegal value",
        "InputError",
        "A name, a number or a keyword is none of the legal ones.",
        "the message lists the legal ones",
    ),
    "GMR-I010": ErrorCode(
        "a scale that is no positive number",
        "InputError",
        "`validate=True` found a scale that is NaN, infinite, zero or negative; nothing else looks at what scales are.",
        "the message names it; `gemmir.quantize` gives positive scales only",
    ),
}

_UNSUPPORTED = {
    "GMR-U001": ErrorCode(
        "a feature that this stage or backend does not lower",
        "UnsupportedError",
        "The program is legal, but no kernel, or not this backend, computes it.",
        "the message names it; `--backend reference` runs every program",
    ),
    "GMR-U002": ErrorCode(
        "an unknown target",
        "UnsupportedError",
        "Kernels use instructions that only Hopper has, and only under its architecture-specific name.",
        "`sm_90a`",
    ),
}

_IR = {
    "GMR-R001": ErrorCode(
        "IR text that does not parse",
        "IRError",
        "The text is no IR of the dialects that gemmir reads: builtin, func, arith, math, gemm, hopper.",
        "see the caret",
    ),
    "GMR-R002": ErrorCode(
        "IR that does not verify",
        "IRError",
        "An operation breaks a rule of its dialect, or a value is used before it is defined.",
        "see the message: it names the operation and the rule",
    ),
    "GMR-R003": ErrorCode(
        "IR over a size limit",
        "IRError",
        "Text is untrusted: its size, nesting, numbers, words, strings, shapes and operations are bounded.",
        "the message has the limit; most are checked before anything is parsed",
    ),
    "GMR-R004": ErrorCode(
        "a pass or pipeline that does not apply",
        "IRError",
        "A pass is unknown, has an option that it does not know, or finds IR of another level than its own.",
        "`gemmir opt --help` lists the passes",
    ),
}

_SCHEDULE = {
    "GMR-S001": ErrorCode(
        "shared memory over budget",
        "ScheduleError",
        "Stages and the outgoing tile need more bytes than a CTA has.",
        "fewer stages or smaller blocks",
    ),
    "GMR-S002": ErrorCode(
        "registers over budget",
        "ScheduleError",
        "The accumulators of a tile need more registers than a thread, or all warps together, may have.",
        "a smaller block, or one more math warpgroup",
    ),
    "GMR-S003": ErrorCode(
        "a tile that WGMMA or TMA cannot express",
        "ScheduleError",
        "A block, or how it is split, is none that the instructions can have.",
        "the message lists the sizes that can",
    ),
    "GMR-S004": ErrorCode(
        "a cluster that cannot be launched or split",
        "ScheduleError",
        "The cluster is too large for the GPU, or does not divide what its CTAs share.",
        "a smaller cluster",
    ),
    "GMR-S005": ErrorCode(
        "a schedule that is incomplete where it must be complete",
        "ScheduleError",
        "A pass needs a choice that no pass before it has made.",
        "run the passes that fill it",
    ),
    "GMR-S006": ErrorCode(
        "no legal schedule",
        "ScheduleError",
        "What the program fixes leaves no legal choice for what is open.",
        "free a field of the schedule that the program fixes",
    ),
}

_SYNC = {
    "GMR-Y001": ErrorCode(
        "a synchronisation fault",
        "SyncError",
        "The kernel's IR could hang or race, or what was printed does not synchronise as what was proven.",
        "the message names both events",
    ),
}

_COMPILE = {
    "GMR-C001": ErrorCode(
        "the CUDA compiler failed",
        "CompileError",
        "NVRTC refused the CUDA source.",
        "the message has its log",
    ),
    "GMR-C002": ErrorCode(
        "the CUDA compiler serialised WGMMA, spilled or ignored setmaxnreg",
        "CompileError",
        "The machine code is right, but far slower than what the schedule was chosen for.",
        "smaller blocks",
    ),
    "GMR-C003": ErrorCode(
        "NVRTC is missing or of another version",
        "ToolMissingError",
        "No NVRTC is found, or one of another major version than the 13 that kernels are printed for.",
        "`pip install nvidia-cuda-nvrtc`",
    ),
    "GMR-C004": ErrorCode(
        "a tool is missing",
        "ToolMissingError",
        "Something that is not installed with gemmir is needed: a disassembler, a profiler, a reader of files.",
        "the message names the package",
    ),
    "GMR-C005": ErrorCode(
        "CUDA source with something in it that gemmir does not print",
        "CompileError",
        "The last look at a source before it is compiled found a word, a character or a directive that is not ours.",
        "a defect of gemmir: please report it",
    ),
    "GMR-C006": ErrorCode(
        "a kernel that takes too long to compile",
        "CompileError",
        "NVRTC was not done after `GEMMIR_COMPILE_TIMEOUT` seconds (300 if it is not set). It cannot be stopped, so it "
        "goes on in a thread.",
        "smaller blocks; 0 is no limit",
    ),
}

_CACHE = {
    "GMR-K001": ErrorCode(
        "the cache cannot be used",
        "CacheError",
        "Its directory cannot be made, written or trusted. Compiling goes on without it; only asking for it fails.",
        "set `GEMMIR_CACHE_DIR` to a directory of your own",
    ),
    "GMR-K002": ErrorCode(
        "a key that is not that of one kernel in the cache",
        "CacheError",
        "`gemmir cache show` was given digits with which no key begins, or several do.",
        "`gemmir cache ls` lists the keys; give more digits",
    ),
}

_BUNDLE = {
    "GMR-B001": ErrorCode(
        "a bundle that cannot be read or written",
        "BundleError",
        "A directory that is none, or holds something else; a file that is missing, too large or no regular file.",
        "write it again, or name another directory",
    ),
    "GMR-B002": ErrorCode(
        "a file of a bundle that is not the one it was written with",
        "BundleError",
        "The SHA-256 of a file is not the one that bundle.json has of it.",
        "copy the bundle again",
    ),
    "GMR-B003": ErrorCode(
        "a bundle of another version",
        "BundleError",
        "Its schema, or the rule by which its grid is found, is not the one that this gemmir knows.",
        "write it again with this version",
    ),
}

_DEVICE = {
    "GMR-D001": ErrorCode(
        "no driver or no GPU",
        "DeviceError",
        "A kernel was to be loaded where CUDA's driver is not installed or sees no GPU.",
        "`gemmir doctor`; compiling works without one",
    ),
    "GMR-D002": ErrorCode(
        "a GPU that is not supported",
        "DeviceError",
        "The GPU is no Hopper GPU, or its part of one is smaller than the kernel needs.",
        "a Hopper GPU (compute capability 9.0)",
    ),
    "GMR-D003": ErrorCode(
        "a CUDA call failed",
        "DeviceError",
        "The driver returned an error after which the process can go on.",
        "the message has the call and CUDA's own error",
    ),
    "GMR-D004": ErrorCode(
        "the device is lost",
        "DeviceLostError",
        "A kernel, of gemmir or not, failed so that CUDA refuses all further work of this process.",
        "start a new process",
    ),
    "GMR-D005": ErrorCode(
        "a kernel was not prepared before graph capture",
        "CaptureError",
        "Loading a kernel is forbidden while a CUDA graph is being captured.",
        "before the capture, call `kernel.prepare()`, `gemmir.prepare(...)`, or `gemmir.quantize` once",
    ),
    "GMR-D006": ErrorCode(
        "CUDA used across a fork",
        "ForkError",
        "The process was forked off one that had used CUDA, whose handles mean nothing in it.",
        "start processes with the `spawn` method",
    ),
    "GMR-D007": ErrorCode(
        "the device is lost through no kernel",
        "DeviceLostError",
        "Memory, a link or another device failed, or the context or the MPS server that it belonged to was ended.",
        "start a new process; `dmesg` and `nvidia-smi -q` show faults of the hardware",
    ),
    "GMR-D008": ErrorCode(
        "a driver that is older than the compiler",
        "DeviceError",
        "The driver is for an older major version of CUDA than that of the NVRTC that compiled the kernel.",
        "update the NVIDIA driver; for CUDA 13, to R580 or newer",
    ),
    "GMR-D009": ErrorCode(
        "not enough memory on the device",
        "OutOfMemoryError",
        "Torch had no memory for a result, or the driver none for a kernel or a context; nothing was launched.",
        "free some, pass `out`, or split the product; the message has the bytes",
    ),
    "GMR-D010": ErrorCode(
        "a kernel that hung",
        "DeviceLostError",
        "A kernel that was compiled with a watchdog (`GEMMIR_WATCHDOG_MS`) waited at a barrier for longer than that.",
        "the message names the barrier and who waits at it; a limit that is too short hits healthy kernels",
    ),
}

ERROR_CODES: dict[str, ErrorCode] = {
    **_INPUT,
    **_UNSUPPORTED,
    **_IR,
    **_SCHEDULE,
    **_SYNC,
    **_COMPILE,
    **_CACHE,
    **_BUNDLE,
    **_DEVICE,
}
"""Every code, in the order of the page."""
