// Shows the class and score of the segment under the pointer. The picture of ids (id = R + 256 G + 65536 B) is read once
// per result; its segments are in the figure's data-segments.
window.seamlessHover = (event) => {
  const figure = event.currentTarget;
  const tip = figure.querySelector(".seamless-tip");
  const mark = figure.querySelector(".seamless-mark");
  const source = figure.querySelector(".seamless-ids");
  if (!figure.seamlessIds) {
    if (!source.complete || !source.naturalWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = source.naturalWidth;
    canvas.height = source.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(source, 0, 0);
    figure.seamlessIds = context.getImageData(0, 0, canvas.width, canvas.height);
    figure.seamlessSegments = JSON.parse(figure.dataset.segments);
    figure.seamlessLast = -1;
  }
  const ids = figure.seamlessIds;
  const box = figure.querySelector(".seamless-overlay").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * ids.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * ids.height);
  if (x < 0 || y < 0 || x >= ids.width || y >= ids.height) return;
  const at = 4 * (y * ids.width + x);
  const id = ids.data[at] + 256 * ids.data[at + 1] + 65536 * ids.data[at + 2];
  tip.textContent = figure.seamlessSegments[id] || "void";
  tip.style.display = "block";
  const left = event.clientX - box.left;
  tip.style.left = Math.min(left + 14, box.width - tip.offsetWidth - 4) + "px";
  tip.style.top = Math.max(event.clientY - box.top - 34, 4) + "px";
  if (id === figure.seamlessLast) return;
  figure.seamlessLast = id;
  // Light the segment up.
  mark.width = ids.width;
  mark.height = ids.height;
  if (!id) return;
  const context = mark.getContext("2d");
  const shade = context.createImageData(ids.width, ids.height);
  for (let i = 0; i < ids.data.length; i += 4) {
    if (ids.data[i] + 256 * ids.data[i + 1] + 65536 * ids.data[i + 2] === id) {
      shade.data[i] = shade.data[i + 1] = shade.data[i + 2] = 255;
      shade.data[i + 3] = 90;
    }
  }
  context.putImageData(shade, 0, 0);
};
window.seamlessLeave = (event) => {
  const figure = event.currentTarget;
  figure.querySelector(".seamless-tip").style.display = "none";
  figure.querySelector(".seamless-mark").width = 1;
  figure.seamlessLast = -1;
};
