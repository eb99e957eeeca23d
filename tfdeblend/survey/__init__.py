"""Survey runs make the catalogue of images of any size, tile by tile, in one process or on a Dask cluster."""

from tfdeblend.survey.run import Report, Survey
from tfdeblend.survey.settings import SurveySettings

__all__ = ["Report", "Survey", "SurveySettings"]
