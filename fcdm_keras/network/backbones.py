"""The table of backbones: a name in `fcdm_keras.recipes.ModelSize.network` → the class."""

from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.network.rivals.dit import DiTBackbone, SiTBackbone

BACKBONES = {"fcdm": FCDMBackbone, "dit": DiTBackbone, "sit": SiTBackbone}
