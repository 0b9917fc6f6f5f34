"""torch_npu.testing: what tests written for the device import. Needs numpy, as the vendor's."""
