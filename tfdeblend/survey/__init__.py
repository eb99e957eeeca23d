"""Survey: from images of any size to a catalogue, tile by tile, on one process or a Dask cluster."""

from tfdeblend.survey.run import Report, Survey
from tfdeblend.survey.settings import SurveySettings

__all__ = ["Report", "Survey", "SurveySettings"]
