"""skyheed in Hyrax: an archive of histories as a data set, and any of skyheed's models for `infer`."""

from hyrax_skyheed.data import SkyheedArchive as SkyheedArchive
from hyrax_skyheed.model import SkyheedModel as SkyheedModel
