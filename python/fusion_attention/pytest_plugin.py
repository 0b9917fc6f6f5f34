"""`pytest -p fusion_attention.pytest_plugin`: makes `import torch_npu` work in tests.

Being imported is all it does, before pytest collects anything.
"""

from fusion_attention import torch_npu

torch_npu.install_for_children()
