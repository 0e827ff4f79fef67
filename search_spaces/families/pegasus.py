"""Pegasus (Zhang et al. 2020, arXiv 1912.08777): M2M-100's layers, for summaries."""

from dataclasses import replace

from search_spaces.families.m2m_100 import M2M_100

PEGASUS = replace(M2M_100, model_type="pegasus")
