"""A driver of GPUs that are not there, built from a few lines of C: what PyTorch makes of an old driver, or a full GPU.

The libraries are found by `LD_LIBRARY_PATH`, which an interpreter reads as it starts.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

_DRIVER = """
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *value = getenv(name);
  return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return number("STUB_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = number("STUB_DRIVER", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("STUB_GPUS", 1); return 0; }
static int no_device(void) { return 100; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, void *status) {
  *function = !strcmp(name, "cuInit") ? (void *)cuInit
            : !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion
            : !strcmp(name, "cuDeviceGetCount") ? (void *)cuDeviceGetCount
            : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : (void *)no_device;
  if (status) *(int *)status = 0;
  return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""

_MANAGEMENT = """
#include <stdio.h>
#include <stdlib.h>

int nvmlInit_v2(void) { return 0; }
int nvmlInit(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(int *count) {
  const char *value = getenv("STUB_GPUS");
  *count = value ? atoi(value) : 1;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(int i, void **handle) { *handle = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned length) {
  snprintf(buffer, length, "GPU-0000000%ld-0000-0000-0000-000000000000", (long)handle);
  return 0;
}
"""


def build_driver(folder: Path) -> Path:
    """Build the libraries in `folder`; a test is skipped where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc")
    for name, source in (("libcuda.so.1", _DRIVER), ("libnvidia-ml.so.1", _MANAGEMENT)):
        command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(folder / name)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder
