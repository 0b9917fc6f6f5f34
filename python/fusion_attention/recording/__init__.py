"""Record and replay: calls of the family as files, made again and compared bit by bit.

tensors.py and files.py know the disk, saved.py a call on it, recorder.py writes calls, rerun.py
makes them again, compare.py tells where two tensors part, verdicts.py why, replay.py reports.
"""

from fusion_attention.recording.recorder import record
from fusion_attention.recording.replay import replay
from fusion_attention.recording.saved import load_call

__all__ = ["load_call", "record", "replay"]
