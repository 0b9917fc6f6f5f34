"""Found by `import torch_npu` in processes whose path has this folder: becomes the stand-in."""

import fusion_attention.torch_npu as _stand_in  # noqa: F401
