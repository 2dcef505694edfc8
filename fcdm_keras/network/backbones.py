"""The table of backbones: a name in `fcdm_keras.recipes.ModelSize.network` → the class."""

from fcdm_keras.network.fcdm import FCDMBackbone, IsotropicBackbone

# A model is named by its class, here NAME_backbone: with that the paths of its variables begin.
BACKBONES = {"fcdm": FCDMBackbone, "isotropic": IsotropicBackbone}
