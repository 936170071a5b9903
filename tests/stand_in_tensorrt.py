"""A stand-in for NVIDIA's `tensorrt`, which no machine without its GPU has: it builds nothing, and writes down what the
builder script asked of it. It has, of each release, the names that the script looks for, and only those; which release
lacks which is from NVIDIA's release notes. It checks the script's control flow and nothing else. Python 3.6.
"""

import os
import types

EXPLICIT_BATCH, STRONGLY_TYPED, ERROR = 0, 3, 1


def make(version, refuses=()):
    """The module as of a release. `refuses` names ways to make the network that its builder fails at: `typed`, `FP16`,
    `INT8`, `plain`. What was asked of it is in its `calls`."""
    release = tuple(int(part) for part in version.split(".")[:2])
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.calls = []
    creation = {}
    if release < (10, 0):
        creation["EXPLICIT_BATCH"] = EXPLICIT_BATCH
    elif release < (11, 0):
        creation.update(EXPLICIT_BATCH=EXPLICIT_BATCH, STRONGLY_TYPED=STRONGLY_TYPED)
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(**creation)
    builder_flags = {"TF32": 7} if release >= (11, 0) else {"FP16": 0, "INT8": 2, "TF32": 7}
    trt.BuilderFlag = types.SimpleNamespace(**builder_flags)
    names = {number: name for name, number in builder_flags.items()}

    class Config:
        def __init__(self):
            self.flags = []

        def set_flag(self, flag):
            self.flags.append(names[flag])

        def add_optimization_profile(self, profile):
            trt.calls.append(("profile", profile.shapes))

    if release >= (8, 4):
        trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE=0)
        Config.set_memory_pool_limit = lambda self, pool, most: trt.calls.append(("pool", most))
    else:
        Config.max_workspace_size = property(fset=lambda self, most: trt.calls.append(("workspace", most)))

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=ERROR)

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, least, usual, most):
            self.shapes[name] = (least, usual, most)

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            trt.calls.append(("network", flags))
            self.typed = bool(flags >> STRONGLY_TYPED) or release >= (11, 0)
            return object()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            ways = ["typed"] if self.typed else (config.flags or ["plain"])
            trt.calls.append(("build", ways))
            if set(ways) & set(refuses):
                self.logger.log(ERROR, "no engine by {}".format(", ".join(ways)))
                return None
            return "engine by {}".format(", ".join(ways)).encode()

    class OnnxParser:
        num_errors = 0

        def __init__(self, network, logger):
            pass

        def parse(self, model):
            return True

        def parse_from_file(self, model):
            trt.calls.append(("file", model))
            return True

    if release >= (10, 0):

        class IProgressMonitor:
            pass

        trt.IProgressMonitor = IProgressMonitor
    trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
    return trt


if __name__ == "tensorrt":  # imported under its name, from a copy of this file
    globals().update(vars(make(os.environ["STAND_IN_VERSION"])))
