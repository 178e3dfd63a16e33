# SPDX-License-Identifier: Apache-2.0
"""One HTML file that shows what was measured: data, savings, quality, answers, cost, losses, benchmarks. It loads
nothing.

inputs     files of other commands -> plain records
data_card  what the data are
examples   users' histories and what a model recommends after them
names      names that tell evaluations apart
savings    rows of the prompts of a dataset's users, by length of the history
sections   records -> sections of text, plots and tables
plots      numbers -> SVG in the page's colours
page       sections -> HTML
"""

from .data_card import data_card as data_card
from .examples import examples as examples
from .examples import recommendations as recommendations
from .page import Section as Section
from .page import Table as Table
from .page import write as write
from .sections import benchmarks as benchmarks
from .sections import cost as cost
from .sections import losses as losses
from .sections import quality as quality
from .sections import savings as savings
