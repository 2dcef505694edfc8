"""The table of backbones: a name in `fcdm_keras.recipes.ModelSize.network` → the class."""

from fcdm_keras.network.fcdm import FCDMBackbone, IsotropicBackbone
from fcdm_keras.network.rivals.dic import DiCBackbone
from fcdm_keras.network.rivals.dico import DiCoBackbone
from fcdm_keras.network.rivals.dig import DiGBackbone
from fcdm_keras.network.rivals.dit import DiTBackbone, SiTBackbone
from fcdm_keras.network.rivals.uvit import UViTBackbone

BACKBONES = {
    "fcdm": FCDMBackbone,
    "isotropic": IsotropicBackbone,
    "dit": DiTBackbone,
    "sit": SiTBackbone,
    "dico": DiCoBackbone,
    "dic": DiCBackbone,
    "dig": DiGBackbone,
    "uvit": UViTBackbone,
}
