// Sources of pictures: chosen, photographed, dropped or pasted files, and our sample drawings.

import { $, h } from "./dom.js";
import { t } from "./words.js";

const SAMPLES = ["airplane", "automobile", "ship", "frog", "horse", "truck", "3", "7"];
const SAMPLE_SIDE_PX = 256;

/** Calls `take(files)` for all files that the user chooses, photographs, pastes or drops. */
export function listen(take) {
  for (const input of [$("choose"), $("camera")]) {
    const takeChosen = () => {
      take([...input.files]);
      input.value = ""; // so that choosing the same file again fires another change event
    };
    input.addEventListener("change", takeChosen);
    takeChosen(); // files that were chosen before this script arrived
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
  let depth = 0; // every element under the pointer fires its own enter and leave events
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
      event.preventDefault(); // otherwise the browser leaves the page and shows the file
      handle(event);
      mark();
    });
  }
}

/** Offers the sample drawings whose class the model has. */
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

/** Converts a drawing (SVG) to a PNG, because the server does not read SVG. */
async function rasterize(image, name) {
  await image.decode();
  const canvas = h("canvas", { width: SAMPLE_SIDE_PX, height: SAMPLE_SIDE_PX });
  canvas.getContext("2d").drawImage(image, 0, 0, SAMPLE_SIDE_PX, SAMPLE_SIDE_PX);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], t("{name} (drawing)", { name }), { type: "image/png" });
}
