"""One adapter for every type of model that takes the features of its vision side in place of pixels.

Cut: after the projector, where a token is as wide as the language model; features that are added in later layers
    (deepstack) follow the token's own.
Layout: by the kind of pixels that the type's processor makes, see `layouts`.
Saliency: what the tower's own attention says of the patches that a token is made of, see `saliency`.

A new type is a row in `table.TYPES`.
"""
