"""mT5 (Xue et al. 2021, arXiv 2010.11934): T5 on text of a hundred languages, with no scale before the head."""

from dataclasses import replace

from search_spaces.families.t5 import T5

MT5 = replace(T5, model_type="mt5", rescale_constants=None)
