// Where pictures come from: chosen, photographed, dropped, pasted, or drawn by us.

import { $, h } from "./dom.js";
import { t } from "./words.js";

const SAMPLES = ["airplane", "automobile", "ship", "frog", "horse", "truck", "3", "7"];
const SAMPLE_SIDE_PX = 256;

/** Calls `take(files)` for whatever the user brings. */
export function listen(take) {
  for (const input of [$("choose"), $("camera")]) {
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = ""; // the same file again is a change again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  listenToDrops(take);
}

function listenToDrops(take) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // each element under the pointer enters and leaves
  const mark = () => $("drop").classList.toggle("over", depth > 0);
  const handlers = {
    dragenter: () => depth++,
    dragleave: () => depth--,
    dragover: (event) => (event.dataTransfer.dropEffect = "copy"),
    drop: (event) => {
      depth = 0;
      take([...event.dataTransfer.files]);
    },
  };
  for (const [name, handle] of Object.entries(handlers)) {
    document.addEventListener(name, (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault(); // else the browser leaves the page and shows the file
      handle(event);
      mark();
    });
  }
}

/** Offers the drawings that show something the model knows. */
export function offerSamples(classNames, take) {
  const list = $("samples").querySelector("ul");
  const fitting = SAMPLES.filter((name) => classNames.includes(name));
  $("samples").hidden = fitting.length === 0;
  list.replaceChildren(
    ...fitting.map((name) => {
      const image = h("img", { src: new URL(`samples/${name}.svg`, import.meta.url).href, alt: name, width: 64, height: 64 });
      return h("li", {}, h("button", { type: "button", title: name, onclick: async () => take([await rasterize(image, name)]) }, image));
    }),
  );
}

/** A drawing as PNG: networks take pixels. */
async function rasterize(image, name) {
  await image.decode();
  const canvas = h("canvas", { width: SAMPLE_SIDE_PX, height: SAMPLE_SIDE_PX });
  canvas.getContext("2d").drawImage(image, 0, 0, SAMPLE_SIDE_PX, SAMPLE_SIDE_PX);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], t("{name} (drawing)", { name }), { type: "image/png" });
}
