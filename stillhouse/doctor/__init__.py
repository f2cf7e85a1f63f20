"""What `stillhouse doctor` looks at: a machine, and a deployment that can be reached from it.

Each check gives findings; one that fails by itself becomes a finding too, so that one fault never hides the others.
"""
