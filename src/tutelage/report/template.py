"""The page of report.html as a jinja2 template; a module rather than a data file, so that every installation has it."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }} - tutelage</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1d2328; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.7rem; border-bottom: 1px solid #d9dee3; }
th { background: #f3f5f7; }
td.text { white-space: pre-wrap; min-width: 10rem; overflow-wrap: anywhere; }
td.small { font-size: 0.8rem; color: #55606a; overflow-wrap: anywhere; }
img { max-width: 100%; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if stages %}<h2>Stages</h2>
<div class="wide"><table>
<tr><th>stage</th><th>kind</th><th>status</th><th>time</th><th>numbers</th></tr>
{% for s in stages %}<tr><td>{{ s.name }}</td><td>{{ s.kind }}</td><td>{{ s.status }}</td><td>{{ s.time }}</td>\
<td>{{ s.numbers }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% if results or grid.rows %}<h2>Results</h2>{% endif %}
{% if grid.rows %}<div class="wide"><table>
<tr><th>model</th>{% for c in grid.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in grid.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if results %}<div class="wide"><table>
{% for name, value in results %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% if methods.rows %}<h2>Methods compared</h2>
<div class="wide"><table>
<tr>{% for c in methods.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in methods.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if answers.rows %}<h2>The same prompts, answered by each model</h2>
<div class="wide"><table>
<tr><th>prompt</th>{% for c in answers.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in answers.rows %}<tr>{% for cell in row %}<td class="text">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% for heading, sheet in sheets %}<h2>{{ heading }}</h2>
<div class="wide"><table>
<tr>{% for c in sheet.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in sheet.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
{% for f in figures %}<h2>{{ f.heading }}</h2>
<img alt="{{ f.heading }}" src="data:image/png;base64,{{ f.png }}">
{% endfor %}
{% if details %}<h2>All numbers of each stage</h2>
{% for name, pairs in details %}<details><summary>{{ name }}</summary><table>
{% for key, value in pairs %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></details>
{% endfor %}{% endif %}
{% if lineage %}<h2>Lineage</h2>
<div class="wide"><table>
<tr><th>stage</th><th>made from</th><th>fingerprint</th><th>seed</th><th>time</th><th>versions</th><th>command</th></tr>
{% for r in lineage %}<tr><td>{{ r.name }}</td><td>{{ r.parents }}</td>\
<td>{{ r.fingerprint }}</td><td>{{ r.seed }}</td>\
<td>{{ r.time }}</td><td class="small">{{ r.versions }}</td><td class="small">{{ r.argv }}</td></tr>
{% endfor %}</table></div>{% endif %}
</body>
</html>
"""
