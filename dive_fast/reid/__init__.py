"""Visible-infrared person re-identification: training, evaluation, comparison of training sets."""
