const views = []
for (const item of document.querySelectorAll("script.item"))
  views.push(await Bokeh.embed.embed_item(JSON.parse(item.textContent), item.previousElementSibling))
const plots = views.map(view => [...view][0].model)
const map = plots.flatMap(plot => plot.renderers).find(renderer => renderer.name === "tracks")

// ---- Bokeh draws on a canvas, which no style sheet reaches: its lines and letters follow the page's colors here.
const dark = matchMedia("(prefers-color-scheme: dark)")
function paint() {
  const style = getComputedStyle(document.documentElement)
  const [text, line] = ["--muted", "--line"].map(name => style.getPropertyValue(name).trim())
  const of_axes = {axis_label_text_color: text, major_label_text_color: text, axis_line_color: line,
                   major_tick_line_color: line, minor_tick_line_color: null}
  map?.selection_glyph.setv({line_color: text, line_width: 3})
  for (const plot of plots) {
    for (const axis of [...plot.below, ...plot.left]) axis.setv(of_axes)
    for (const grid of plot.center) if ("grid_line_color" in grid.properties) grid.setv({grid_line_color: line})
  }
}
paint()
dark.addEventListener("change", paint)

// ---- The map: its points, the list of tracks and the nearest tracks choose a track together.
if (map) {
  const tracks = JSON.parse(document.getElementById("tracks").textContent)
  const [list, about, player, neighbors] = ["track", "about", "player", "neighbors"].map(id => document.getElementById(id))
  const points = map.data_source.selected

  function choose(number, play) {
    const track = tracks[number]
    list.value = number
    about.textContent = [track.genre, track.path].filter(Boolean).join(" · ")
    player.src = track.clip
    if (play) player.play()
    neighbors.replaceChildren(...track.neighbors.map(([other, cosine]) => {
      const item = document.createElement("li"), button = document.createElement("button"), name = document.createElement("bdi")
      name.textContent = tracks[other].name
      button.type = "button"
      button.append("▶ ", name)
      button.setAttribute("aria-label", `Play ${tracks[other].name}`)
      button.addEventListener("click", () => { player.src = tracks[other].clip; player.play() })
      item.append(button, ` ${tracks[other].genre}, ${cosine.toFixed(2)}`)
      return item
    }))
    if (points.indices[0] !== number || points.indices.length !== 1) points.indices = [number]
  }
  list.addEventListener("change", () => choose(Number(list.value), true))
  points.properties.indices.change.connect(() => {
    if (points.indices.length && String(points.indices[0]) !== list.value) choose(points.indices[0], true)
  })
  choose(Number(list.value), false)
}
document.documentElement.dataset.ready = "yes"
