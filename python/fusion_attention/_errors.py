"""The errors of the features around the operator: texts that say all that their reader needs.

The operator's own errors are RuntimeErrors in the wording of docs/errors.md and have nothing to do
with these.
"""


class FeatureError(RuntimeError):
    """What a feature cannot do, and what to do about it, in a sentence.

    The command line prints it without a traceback.
    """
