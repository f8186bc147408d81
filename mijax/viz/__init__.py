"""Pictures and pages: heatmaps, curves, attention, circuits, dictionaries, probes."""

from mijax.viz._accuracy import accuracy_bands as accuracy_bands
from mijax.viz._category_maps import category_maps as category_maps
from mijax.viz._circuit import circuit_graph as circuit_graph
from mijax.viz._circuit_page import circuit_page as circuit_page
from mijax.viz._curves import faithfulness_curves as faithfulness_curves
from mijax.viz._curves import score_scatter as score_scatter
from mijax.viz._density import density_histogram as density_histogram
from mijax.viz._dimensions import feature_dimensions as feature_dimensions
from mijax.viz._feature_page import feature_page as feature_page
from mijax.viz._feature_page import feature_pages as feature_pages
from mijax.viz._heatmap import attention_grid as attention_grid
from mijax.viz._heatmap import heatmap as heatmap
from mijax.viz._heatmap import heatmaps as heatmaps
from mijax.viz._html import Page as Page
from mijax.viz._images import image_grid as image_grid
from mijax.viz._labels import readable as readable
from mijax.viz._page import attention_page as attention_page
from mijax.viz._pareto import pareto as pareto
from mijax.viz._plots import bars as bars
from mijax.viz._plots import line as line
from mijax.viz._save import save as save
from mijax.viz._save import save_page as save_page
from mijax.viz._save import save_png as save_png
from mijax.viz._terminal import TerminalHeatmap as TerminalHeatmap
from mijax.viz._terminal import terminal_heatmap as terminal_heatmap
from mijax.viz._training_curves import training_curves as training_curves
