"""From a folder to a transformers model: built without weights, compared, and filled in place.

Importing this subpackage imports torch and transformers (the extra `model` of the distribution);
`brisk_native` itself does so only when `load_model` or `start_loading` is called.

`build_skeleton` makes the model without memory and refuses what does not fit it; an `Assembly`
makes the stored tensors its parameters, in any order, as they come.
"""

from __future__ import annotations

from brisk_native.model._assembly import Assembly, DeviceOf, on_cpu
from brisk_native.model._config import CONFIG_FILE, library_words, read_config
from brisk_native.model._dtypes import DefaultDtype, named_dtype
from brisk_native.model._moving import bring_inputs
from brisk_native.model._skeleton import Skeleton, build_skeleton
from brisk_native.model._waiting import waiting

__all__ = [
    "CONFIG_FILE",
    "Assembly",
    "DefaultDtype",
    "DeviceOf",
    "Skeleton",
    "bring_inputs",
    "build_skeleton",
    "library_words",
    "named_dtype",
    "on_cpu",
    "read_config",
    "waiting",
]
