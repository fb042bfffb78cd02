"use strict";
/* Shows the chosen cells of a dataset: a row of images each, its numbers, and the settings that they do not share. */

const GAP = 4; // pixels between two images, as in page.css
const SIDE = 64; // of a shown image, at least, before anyone zooms

const groups = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { group: groups[0], seed: 0, first: 0, zoom: 1, difference: false, chosen: new Set() };
let calls = 0; // of render
const pixels = new Map(); // of a sprite, by its address: a promise of its ImageData

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* The pixels of a sprite, whose images stand one below another. */
function decoded(uri) {
  if (!pixels.has(uri)) {
    pixels.set(uri, (async () => {
      const image = new Image();
      image.src = uri;
      await image.decode();
      const canvas = element("canvas", { width: image.width, height: image.height });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, image.width, image.height);
    })());
  }
  return pixels.get(uri);
}

/* Image `index` of a group's sprite; with `full`, its difference to that image of full precision, around grey. */
function cut({ width, height }, sprite, index, full) {
  const from = 4 * width * height * index;
  const values = sprite.data.slice(from, from + 4 * width * height);
  if (full) {
    for (let place = 0; place < values.length; place++) {
      if (place % 4 !== 3) values[place] = 128 + values[place] - full.data[from + place];
    }
  }
  return new ImageData(values, width, height);
}

function shownCells() {
  return state.group.cells.filter((cell) => cell.full || state.chosen.has(cell.name));
}

function columns() {
  const side = state.group.width * state.zoom + GAP;
  const room = $("images").clientWidth - parseFloat(getComputedStyle($("grid")).getPropertyValue("--row-head")) * 16 - 32;
  return Math.max(1, Math.min(state.group.images, Math.floor(room / side)));
}

/* The colour that a cell's method has in every picture. */
function swatch(cell) {
  const made = element("span", { className: "swatch" });
  made.style.setProperty("--colour", cell.colour);
  return made;
}

/* A line of short texts, one above or below each image. */
function line(texts, side = state.group.width * state.zoom) {
  const made = element("div", { className: "line" }, ...texts.map((text) => element("span", { textContent: text, title: text })));
  made.style.setProperty("--side", `${side}px`);
  return made;
}

function rowOf(cell, indices) {
  const numbers = cell.numbers.map((text) => element("small", { textContent: text }));
  const row = element("tr", {}, element("th", { scope: "row" }, swatch(cell), ` ${cell.label}`, ...numbers));
  const place = element("td");
  row.append(place);
  row.dataset.cell = cell.name;
  const uri = cell.sprites[state.seed];
  if (!uri) {
    place.append(element("p", { className: "note", textContent: `no images of seed ${state.seed} here` }));
    return [row, Promise.resolve()];
  }
  return [row, drawn(cell, uri, indices, place)];
}

/* Of the choice as it is now: until its images are decoded another may have been made. */
async function drawn(cell, uri, indices, place) {
  const { group, zoom, seed, difference } = state;
  const { width, height, cells } = group;
  const full = cells.find((each) => each.full && each.sprites[seed]);
  const [sprite, target] = await Promise.all([decoded(uri), full ? decoded(full.sprites[seed]) : null]);
  const small = element("canvas", { width, height });
  const canvas = element("canvas", {
    width: indices.length * (width * zoom + GAP) - GAP,
    height: height * zoom,
    role: "img",
    ariaLabel: `${cell.label}: images ${indices[0]} to ${indices.at(-1)}`,
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  indices.forEach((index, column) => {
    small.getContext("2d").putImageData(cut(group, sprite, index, difference && !cell.full ? target : null), 0, 0);
    context.drawImage(small, column * (width * zoom + GAP), 0, width * zoom, height * zoom);
  });
  place.append(canvas);
  const closeness = cell.psnr[seed];
  if (closeness) place.append(line(indices.map((index) => closeness[index]?.toFixed(1) ?? "equal"), width * zoom));
}

/* Everything that depends on the choice; resolves when the images stand. Of several calls the last one counts. */
async function render() {
  const mine = ++calls;
  const { group } = state;
  const cells = shownCells();
  const count = columns();
  $("first").max = Math.max(0, group.images - count);
  state.first = Math.min(state.first, Number($("first").max));
  $("first").value = state.first;
  $("first").disabled = group.images <= count;
  const indices = Array.from({ length: Math.min(count, group.images) }, (_, column) => state.first + column);
  $("range").textContent = indices.length ? `${indices[0]}–${indices.at(-1)} of ${group.images}` : "";

  const without = !group.images;
  $("absent").hidden = !without;
  for (const id of ["mover", "pictures", "below"]) $(id).hidden = without;
  $("compressed").hidden = without || group.exact;
  $("zoom").disabled = $("difference").disabled = without;
  $("absent").textContent = `The images of ${group.dataset} are not here. "dvc pull results/previews" brings shared ones; ` +
    `"snakemake results/previews/${group.dataset}/CELL-seed0.safetensors" makes those of a cell.`;

  const rows = cells.map((cell) => [cell, ...rowOf(cell, indices)]);
  const head = group.conditions ? line(indices.map((index) => group.conditions[index])) : line(indices.map(String));
  const title = element("tr", {}, element("th", { textContent: group.conditions ? "drawn for" : "image" }), element("td", {}, head));
  await Promise.all(rows.map(([, , done]) => done));
  if (mine !== calls) return;
  $("grid").tHead.replaceChildren(title, ...rows.filter(([cell]) => cell.full).map(([, row]) => row));
  $("grid").tBodies[0].replaceChildren(...rows.filter(([cell]) => !cell.full).map(([, row]) => row));
  document.documentElement.dataset.shown = `${group.dataset} ${state.seed} ${state.first}`;

  showNumbers(new Set(cells.map((cell) => cell.name)));
  showSettings(cells.filter((cell) => !cell.full));
  const all = group.cells.length;
  $("chooser").querySelector("summary").textContent = `Cells: ${cells.length} of ${all} shown`;
}

function showNumbers(names) {
  document.querySelectorAll(".numbers").forEach((section) => {
    section.hidden = groups[section.dataset.group] !== state.group;
    section.querySelectorAll("tbody tr").forEach((row) => { row.hidden = !names.has(row.dataset.cell); });
  });
}

function showSettings(cells) {
  const keys = [...new Set(cells.flatMap((cell) => Object.keys(cell.settings)))];
  const differing = keys.filter((key) => new Set(cells.map((cell) => cell.settings[key])).size > 1).sort();
  const [head, body] = [$("settings").querySelector("thead"), $("settings").querySelector("tbody")];
  head.replaceChildren(element("tr", {}, ...["setting", ...cells.map((cell) => cell.label)].map(
    (text) => element("th", { scope: "col", textContent: text }),
  )));
  body.replaceChildren(...differing.map((key) => element("tr", {}, element("th", { scope: "row", textContent: key }),
    ...cells.map((cell) => element("td", { textContent: cell.settings[key] ?? "–" })))));
  $("settings").hidden = !differing.length;
}

function found(cell) {
  const text = `${cell.label} ${cell.name}`.toLowerCase();
  return $("find").value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/* A box for each cell, those of one bit-width together. */
function showChooser() {
  const cells = state.group.cells.filter((cell) => !cell.full && found(cell));
  const bits = [...new Set(cells.map((cell) => cell.bits))];
  $("cells").replaceChildren(...bits.map((width) => element("fieldset", {}, element("legend", { textContent: width }),
    ...cells.filter((cell) => cell.bits === width).map((cell) => {
      const box = element("input", { type: "checkbox", checked: state.chosen.has(cell.name) });
      box.addEventListener("change", () => {
        state.chosen[box.checked ? "add" : "delete"](cell.name);
        render();
      });
      return element("label", {}, box, " ", swatch(cell), ` ${cell.label}`);
    }))));
}

/* What a dataset starts with: the methods themselves, those with images where there are any. */
function methods() {
  const plain = state.group.cells.filter((cell) => !cell.full && !cell.variant);
  const pictured = plain.filter((cell) => cell.sprites[state.seed]);
  const chosen = pictured.length ? pictured : plain.length ? plain : state.group.cells;
  return new Set(chosen.map((cell) => cell.name));
}

function options(select, values, texts, chosen) {
  select.replaceChildren(...values.map((value, index) => element("option", { value, textContent: texts[index], selected: value === chosen })));
}

function chooseGroup(group) {
  const pictured = group.seeds.filter((seed) => group.cells.some((cell) => cell.sprites[seed]));
  const zoom = group.images ? Math.ceil(SIDE / Math.min(SIDE, group.width, group.height)) : 1;
  Object.assign(state, { group, seed: (pictured.length ? pictured : group.seeds)[0], first: 0, zoom });
  state.chosen = methods();
  options($("seed"), group.seeds, group.seeds, state.seed);
  const zooms = [...new Set([1, 2, 3, 4, 6, 8, 12, zoom])].sort((a, b) => a - b);
  options($("zoom"), zooms, zooms.map((factor) => `${factor}×`), zoom);
  $("apart").hidden = !group.apart;
  $("apart").textContent = `Measured apart from the other results of ${group.dataset}: ${group.apart}.`;
  showChooser();
  return render();
}

function start() {
  for (const id of ["controls", "chooser", "images"]) $(id).hidden = false;
  options($("dataset"), groups.map((_, index) => index), groups.map((group) => group.title + (group.apart ? " (measured apart)" : "")), 0);
  $("dataset").addEventListener("change", (event) => chooseGroup(groups[event.target.value]));
  $("seed").addEventListener("change", (event) => { state.seed = Number(event.target.value); render(); });
  $("zoom").addEventListener("change", (event) => { state.zoom = Number(event.target.value); render(); });
  $("difference").addEventListener("change", (event) => { state.difference = event.target.checked; render(); });
  $("first").addEventListener("input", (event) => { state.first = Number(event.target.value); render(); });
  $("find").addEventListener("input", showChooser);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => {
      const every = state.group.cells.filter((cell) => !cell.full && found(cell)).map((cell) => cell.name);
      state.chosen = { methods, all: () => new Set(every), none: () => new Set() }[button.dataset.choose]();
      showChooser();
      render();
    });
  }
  window.addEventListener("resize", () => render());
  return chooseGroup(groups[0]);
}

start();
