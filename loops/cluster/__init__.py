"""Several processes that train one model: who they are, how they find each other, and TensorFlow's strategy between them.

It knows no training: what the processes have to agree on beyond their addresses is said further up.
"""
