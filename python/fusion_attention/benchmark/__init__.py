"""Our operator against torch's attention: problems, both ways to compute them, and a fair clock.

scripts/bench measures with these what developers need; `python -m fusion_attention bench` what a
user of this machine wants to know.
"""
