// The confusion matrix of the test images, and the pictures behind a cell.

import { request } from "./api.js";
import { h, note, number, percent, say, smallButton } from "./dom.js";
import { t } from "./words.js";
import { mostConfused, relatedTo } from "./confusion.js";

const MOST_CLASSES = 20;
const LEAST_CELL_PX = 22;
const NAMES_PX = 84;
const MOST_PAIRS = 8;
const MOST_PIXELATED = 64; // px; larger pictures are photographs, which are shown smooth and larger
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** Fills `body` with the matrix and the mistakes; loads them when they are first shown, and again for another model. */
export class Mistakes {
  constructor(body) {
    this.body = body;
    this.shown = null;
    new ResizeObserver(() => this.gallery && this.columns !== this.fitting() && this.drawMatrix()).observe(body);
  }

  /** Shows a model's mistakes; an empty reference is the server's default model. */
  async show(model) {
    if (this.shown === model) return;
    this.shown = model;
    this.gallery = null;
    this.body.replaceChildren(note("waiting", t("Reading…")));
    try {
      const answer = await (await request(`gallery${model && `?${new URLSearchParams({ model })}`}`)).json();
      if (this.shown === model) this.draw(answer);
    } catch (error) {
      if (this.shown !== model) return;
      this.shown = null;
      const again = smallButton(t("Try again"), () => this.show(model));
      this.body.replaceChildren(note("notice", h("strong", {}, error.message), " ", error.detail ?? "", " ", again));
      say(error.message);
    }
  }

  draw({ model, version, gallery }) {
    const reference = `${model}@${version}`;
    if (gallery === null) {
      const command = h("code", {}, `cifar-ray evaluate ${reference} --attach`);
      this.body.replaceChildren(note("hint", t("{reference} has no gallery of its mistakes. This command makes a version with one:", { reference }), " ", command));
      return;
    }
    this.gallery = gallery;
    this.opened = null;
    this.matrix = h("div", { className: "matrix" });
    this.cell = h("section", { className: "cell" });
    const choices = gallery.class_names.map((name, i) => h("option", { value: i }, name));
    this.focus = h("select", { id: "focus", onchange: () => this.drawMatrix() }, h("option", { value: "" }, t("the most confused")), ...choices);
    this.chooser = h("div", { className: "chooser" }, h("label", { htmlFor: "focus" }, t("Classes")), this.focus);
    const [count, right] = [sum(gallery.images), sum(gallery.correct)];
    const share = ((100 * right) / Math.max(1, count)).toFixed(1);
    this.body.replaceChildren(
      h("p", {}, h("strong", {}, reference), " ",
        t("{right} of {count} pictures are correct ({share} %, split: {split}).", { right: number(right), count: number(count), share, split: gallery.split })),
      this.chooser,
      h("div", { className: "beside" }, this.matrix, this.pairs()),
      this.cell,
    );
    this.drawMatrix();
    if (gallery.confusions.length) this.open(gallery.confusions[0]);
    else this.cell.replaceChildren(note("hint", t("No mistakes.")));
  }

  /** Number of classes that fit into the width. */
  fitting() {
    const room = Math.floor((this.body.clientWidth - NAMES_PX) / LEAST_CELL_PX);
    return Math.min(this.gallery.class_names.length, Math.max(2, Math.min(MOST_CLASSES, room)));
  }

  /** Ids of the classes in the matrix. */
  classes() {
    const { class_names: names, confusions } = this.gallery;
    if (this.columns === names.length) return names.map((_, i) => i);
    return this.focus.value ? relatedTo(Number(this.focus.value), confusions, this.columns) : mostConfused(confusions, this.columns);
  }

  drawMatrix() {
    const { class_names: names, confusions } = this.gallery;
    this.columns = this.fitting();
    this.chooser.hidden = this.columns === names.length;
    const classes = this.classes();
    const found = new Map(confusions.map((one) => [key(one), one]));
    const header = (scope, i) => h("th", { scope, title: names[i] }, h("span", {}, names[i]));
    const row = (i) => h("tr", {}, header("row", i), ...classes.map((j) => this.tableCell(i, j, found)));
    const table = h(
      "table",
      { onkeydown: move },
      h("caption", {}, t("Rows: true classes. Columns: predicted classes. Choose a number to see its pictures.")),
      h("thead", {}, h("tr", {}, h("td"), ...classes.map((j) => header("col", j)))),
      h("tbody", {}, ...classes.map(row)),
    );
    this.matrix.replaceChildren(table);
    const buttons = [...table.querySelectorAll("button")];
    for (const button of buttons) button.tabIndex = -1; // the arrow keys move between the buttons
    const entry = buttons.find((button) => button.hasAttribute("aria-current")) ?? buttons[0];
    if (entry) entry.tabIndex = 0;
  }

  tableCell(i, j, found) {
    const { images, correct } = this.gallery;
    const confusion = found.get(key({ true: i, predicted: j }));
    if (i !== j && !confusion) return h("td", { className: "none" });
    const cell = i === j ? h("td", { className: "right" }, String(correct[i])) : h("td", { className: "wrong" }, this.button(confusion));
    const share = (i === j ? correct[i] : confusion.count) / Math.max(1, images[i]);
    cell.style.setProperty("--share", i === j ? share : Math.sqrt(share)); // shares of mistakes are small; their square roots are easier to tell apart
    return cell;
  }

  /** The most frequent pairs as a list, for users whom the matrix does not help. */
  pairs() {
    const most = this.gallery.confusions.slice(0, MOST_PAIRS);
    const items = most.map((one) => h("li", {}, this.button(one, this.words(one), h("span", {}, number(one.count)))));
    return h("div", { className: "pairs" }, h("h3", {}, t("Most frequent")), h("ol", {}, ...items));
  }

  words({ true: shown, predicted }) {
    const names = this.gallery.class_names;
    return t("{shown} predicted as {predicted}", { shown: names[shown], predicted: names[predicted] });
  }

  /** A button that opens a cell; it shows `children`, or the number of mistakes. */
  button(confusion, ...children) {
    const label = children.length ? null : `${this.words(confusion)}: ${pictures(confusion.count)}`;
    const current = this.opened === key(confusion) ? "true" : null;
    const attributes = { type: "button", "aria-label": label, "aria-current": current, "data-cell": key(confusion) };
    const button = h("button", attributes, ...(children.length ? children : [String(confusion.count)]));
    button.addEventListener("click", () => {
      this.open(confusion);
      this.cell.scrollIntoView({ block: "nearest" }); // on a phone, the cell is below the visible part
      say(`${this.words(confusion)}: ${pictures(confusion.count)}.`);
    });
    return button;
  }

  open(confusion) {
    this.opened = key(confusion);
    for (const button of this.body.querySelectorAll("[data-cell]")) {
      if (button.dataset.cell === this.opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const shown = this.gallery.mistakes.filter((one) => key(one) === this.opened);
    const some = shown.length ? t("; the {count} most confident ones", { count: shown.length }) : t("; none of them is stored in the gallery");
    const list = h("ul", {});
    const items = shown.map((one) => {
      const image = h("img", { src: one.picture, alt: `${this.words(one)}: ${one.name}`, title: one.name, width: 96, height: 96 });
      image.addEventListener("load", () => image.naturalWidth > MOST_PIXELATED && list.classList.add("photos"));
      return h("li", {}, h("figure", {}, image, h("figcaption", {}, percent(one.confidence))));
    });
    list.append(...items);
    this.cell.replaceChildren(
      h("h3", {}, this.words(confusion)),
      note("hint", `${pictures(confusion.count)}${shown.length < confusion.count ? some : ""}`),
      list,
    );
  }
}

/** Arrow keys, Home and End move the focus to the next number in their direction; they skip empty cells. */
function move(event) {
  const from = event.target.closest("td");
  if (!from || event.altKey || event.ctrlKey || event.metaKey) return;
  const rows = [...event.currentTarget.tBodies[0].rows];
  const buttonAt = (row, column) => rows[row]?.cells[column]?.querySelector("button");
  let [row, column] = [rows.indexOf(from.parentElement), from.cellIndex];
  let next = null;
  if (event.key in STEPS) {
    const [down, right] = STEPS[event.key];
    do {
      row += down;
      column += right;
      next = buttonAt(row, column);
    } while (!next && rows[row]?.cells[column]);
  } else if (event.key === "Home" || event.key === "End") {
    const inRow = [...rows[row].querySelectorAll("button")];
    next = event.key === "Home" ? inRow[0] : inRow.at(-1);
  } else return;
  event.preventDefault();
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const key = (one) => `${one.true},${one.predicted}`;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const pictures = (count) => t(count === 1 ? "{count} picture" : "{count} pictures", { count: number(count) });
