"""What a person names in, a checked classifier out.

name, checkpoint ──sources, weights──> network ──outputs, labels, preprocessing──> LoadedModel
"""
