/* A region of a JPEG through libjpeg-turbo's row interface.
 *
 * libjpeg reports a fatal error by a function that must not return; the way out is longjmp, which
 * has to stay within C. Every entry point below arms `escape` first, returns a status, and leaves
 * the handle in a state from which qf_jpeg_begin or qf_jpeg_free can go on. No entry point holds
 * resources of its own in locals, so nothing leaks when it is left by longjmp.
 *
 * The Huffman-coded data of a sequential picture is decoded by `huffman`: qf_jpeg_begin describes the
 * scan, qf_jpeg_rows takes a function for MCUs, and puts it in the place of libjpeg's own.
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeglib.h"
#include "jerror.h"

enum qf_jpeg_status { QF_OK = 0, QF_BROKEN = 1, QF_TRUNCATED = 2, QF_DAMAGED = 3, QF_GIVEN_UP = 4 };

/* Mirrored by `Layout` in jpeg.rs. */
struct qf_jpeg_layout {
  uint32_t width, height;         /* of the whole picture as stored, unscaled */
  uint32_t scaled_width, scaled_height;
  uint32_t first_column, columns; /* of the scaled picture: what rows hold */
  uint32_t channels;              /* 3: RGB, 4: CMYK as Adobe stores it */
};

/* A block of an MCU. Mirrored by `Block` in jpeg.rs. */
struct qf_jpeg_block {
  uint8_t component, dc, ac, wants_ac;
};

enum { PLANES = 3 };

/* A component of a scan of three. Mirrored by `Plane` in jpeg.rs. */
struct qf_jpeg_plane {
  uint32_t index;       /* of its rows, among those of all components */
  uint32_t across, down; /* blocks of an MCU */
  uint32_t side;        /* samples that become of a block, along a side */
  const UINT16 *factors; /* what coefficients are multiplied by, in natural order */
};

/* The scan of a picture. Mirrored by `Scan` in jpeg.rs. */
struct qf_jpeg_scan {
  size_t offset; /* of its data */
  /* By number of the table: counts of codes by length, and symbols; null where there is none. */
  const uint8_t *dc_counts[NUM_HUFF_TBLS], *dc_symbols[NUM_HUFF_TBLS];
  const uint8_t *ac_counts[NUM_HUFF_TBLS], *ac_symbols[NUM_HUFF_TBLS];
  uint32_t mcus_per_row, first_mcu, last_mcu, restart_interval;
  uint32_t block_count; /* 0: a scan that libjpeg has to decode */
  struct qf_jpeg_block blocks[D_MAX_BLOCKS_IN_MCU];
  uint32_t mcu_rows;
  uint32_t is_ycc;      /* whether its components are those of JFIF, and to become RGB */
  uint32_t plane_count; /* 0: components that libjpeg has to transform */
  struct qf_jpeg_plane planes[PLANES];
};

/* Decodes the next MCU of `scan` into `blocks`, or passes over it if they are null. Returns 0 if it
 * cannot. */
typedef int (*qf_jpeg_next_mcu)(void *scan, JCOEF (*blocks)[DCTSIZE2]);

/* The head of libjpeg-turbo's entropy decoder (its jpegint.h, which is not installed). */
struct entropy_decoder {
  void (*start_pass)(j_decompress_ptr info);
  boolean (*decode_mcu)(j_decompress_ptr info, JBLOCKROW *blocks);
};

/* Whether it is known to look like that. */
#define KNOWN_LIBJPEG (LIBJPEG_TURBO_VERSION_NUMBER >= 3000000 && LIBJPEG_TURBO_VERSION_NUMBER < 3002000)

int qf_jpeg_version(void) { return LIBJPEG_TURBO_VERSION_NUMBER; }

struct qf_jpeg {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
  jmp_buf escape;
  int created;
  int lenient;
  int max_scans;
  qf_jpeg_next_mcu next_mcu;
  void *scan;
  J12SAMPLE *line; /* a row of a picture of 12 bits, in libjpeg's memory */
  uint32_t line_samples;
  int status;
  char message[JMSG_LENGTH_MAX];
};

static void escape(struct qf_jpeg *jpeg, int status)
{
  jpeg->status = status;
  longjmp(jpeg->escape, 1);
}

static void error_exit(j_common_ptr common)
{
  struct qf_jpeg *jpeg = common->client_data;
  (*common->err->format_message)(common, jpeg->message);
  escape(jpeg, QF_BROKEN);
}

/* Warnings are about data that libjpeg goes on without. Those that mean lost coefficients end a
 * strict decode; the others are sloppy headers, which every reader accepts. */
static void emit_message(j_common_ptr common, int level)
{
  struct qf_jpeg *jpeg = common->client_data;
  int status;
  if (level >= 0)
    return;
  common->err->num_warnings++;
  switch (common->err->msg_code) {
  case JWRN_HIT_MARKER:
  case JWRN_JPEG_EOF:
    status = QF_TRUNCATED;
    break;
  case JWRN_HUFF_BAD_CODE:
  case JWRN_ARITH_BAD_CODE:
  case JWRN_MUST_RESYNC:
  case JWRN_BOGUS_PROGRESSION:
    status = QF_DAMAGED;
    break;
  default:
    return;
  }
  if (!jpeg->lenient) {
    (*common->err->format_message)(common, jpeg->message);
    escape(jpeg, status);
  }
}

static void output_message(j_common_ptr common)
{
  (void)common; /* a library prints nothing */
}

static void monitor_progress(j_common_ptr common)
{
  struct qf_jpeg *jpeg = common->client_data;
  if (jpeg->info.input_scan_number > jpeg->max_scans) {
    snprintf(jpeg->message, sizeof jpeg->message, "it has more than %d scans", jpeg->max_scans);
    escape(jpeg, QF_BROKEN);
  }
}

static void init_source(j_decompress_ptr info)
{
  (void)info;
}

static void term_source(j_decompress_ptr info)
{
  (void)info;
}

/* Called when all bytes of the file are used up. A lenient decode pretends that the file ends
 * here in form; what was not coded becomes mid-grey. */
static boolean fill_input_buffer(j_decompress_ptr info)
{
  static const JOCTET end_of_image[2] = { 0xff, JPEG_EOI };
  struct qf_jpeg *jpeg = info->client_data;
  if (!jpeg->lenient) {
    snprintf(jpeg->message, sizeof jpeg->message, "the file ends within its data");
    escape(jpeg, QF_TRUNCATED);
  }
  info->src->next_input_byte = end_of_image;
  info->src->bytes_in_buffer = sizeof end_of_image;
  return TRUE;
}

static void skip_input_data(j_decompress_ptr info, long count)
{
  struct jpeg_source_mgr *source = info->src;
  if (count <= 0)
    return;
  if ((unsigned long)count > source->bytes_in_buffer) {
    source->bytes_in_buffer = 0;
    fill_input_buffer(info);
    return;
  }
  source->next_input_byte += count;
  source->bytes_in_buffer -= (size_t)count;
}

struct qf_jpeg *qf_jpeg_new(void)
{
  return calloc(1, sizeof(struct qf_jpeg));
}

static void end(struct qf_jpeg *jpeg)
{
  if (jpeg->created) {
    jpeg->created = 0;
    jpeg_destroy_decompress(&jpeg->info);
  }
}

void qf_jpeg_free(struct qf_jpeg *jpeg)
{
  end(jpeg);
  free(jpeg);
}

/* The message of the last status that was not QF_OK; valid until the next call. */
const char *qf_jpeg_message(const struct qf_jpeg *jpeg)
{
  return jpeg->message;
}

/* Describes the scan, where it is a kind that huffman.rs decodes: one that holds all components, sequential,
 * of Huffman codes. `first_column` and `columns` are whole MCUs, but for the last. */
static void describe_scan(struct qf_jpeg *jpeg, const uint8_t *bytes, uint32_t eighths,
                          uint32_t first_column, uint32_t columns, struct qf_jpeg_scan *scan)
{
  struct jpeg_decompress_struct *info = &jpeg->info;
  uint32_t mcu_columns;
  int i;

  scan->block_count = 0;
  scan->plane_count = 0;
  if (!KNOWN_LIBJPEG || info->progressive_mode || info->arith_code || info->data_precision != 8 ||
      info->comps_in_scan != info->num_components || jpeg_has_multiple_scans(info))
    return;
  mcu_columns = eighths * (info->num_components == 1 ? 1 : (uint32_t)info->max_h_samp_factor);
  scan->offset = (size_t)(info->src->next_input_byte - bytes);
  scan->mcus_per_row = info->MCUs_per_row;
  scan->mcu_rows = info->MCU_rows_in_scan;
  scan->is_ycc = info->jpeg_color_space == JCS_YCbCr && info->out_color_space == JCS_RGB;
  scan->first_mcu = first_column / mcu_columns;
  scan->last_mcu = (first_column + columns - 1) / mcu_columns;
  scan->restart_interval = info->restart_interval;
  for (i = 0; i < NUM_HUFF_TBLS; i++) {
    JHUFF_TBL *dc = info->dc_huff_tbl_ptrs[i], *ac = info->ac_huff_tbl_ptrs[i];
    scan->dc_counts[i] = dc ? dc->bits : NULL;
    scan->dc_symbols[i] = dc ? dc->huffval : NULL;
    scan->ac_counts[i] = ac ? ac->bits : NULL;
    scan->ac_symbols[i] = ac ? ac->huffval : NULL;
  }
  for (i = 0; i < info->blocks_in_MCU; i++) {
    const jpeg_component_info *component = info->cur_comp_info[info->MCU_membership[i]];
    scan->blocks[i].component = (uint8_t)info->MCU_membership[i];
    scan->blocks[i].dc = (uint8_t)component->dc_tbl_no;
    scan->blocks[i].ac = (uint8_t)component->ac_tbl_no;
    scan->blocks[i].wants_ac = component->DCT_scaled_size > 1;
  }
  scan->block_count = (uint32_t)info->blocks_in_MCU;
  if (info->comps_in_scan != PLANES || info->dct_method != JDCT_ISLOW)
    return;
  for (i = 0; i < info->comps_in_scan; i++) {
    const jpeg_component_info *component = info->cur_comp_info[i];
    struct qf_jpeg_plane *plane = &scan->planes[i];
    if (!component->component_needed || !component->quant_table ||
        (component->DCT_scaled_size != DCTSIZE && component->DCT_scaled_size != DCTSIZE / 2))
      return;
    plane->index = (uint32_t)component->component_index;
    plane->across = (uint32_t)component->MCU_width;
    plane->down = (uint32_t)component->MCU_height;
    plane->side = (uint32_t)component->DCT_scaled_size;
    plane->factors = component->quant_table->quantval;
  }
  scan->plane_count = (uint32_t)info->comps_in_scan;
}

/* Stands in for libjpeg's function of this name. libjpeg's buffer holds the blocks of an MCU one
 * behind the other, filled with zeros. */
static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW *blocks)
{
  struct qf_jpeg *jpeg = info->client_data;
  if (!jpeg->next_mcu(jpeg->scan, blocks ? blocks[0] : NULL))
    escape(jpeg, QF_GIVEN_UP);
  return TRUE;
}

/* What qf_jpeg_begin does under the protection of `escape`. */
static int begin(struct qf_jpeg *jpeg, const uint8_t *bytes, size_t len, uint32_t eighths,
                 uint32_t first_column, uint32_t columns, struct qf_jpeg_layout *layout,
                 struct qf_jpeg_scan *scan)
{
  struct jpeg_decompress_struct *info = &jpeg->info;

  jpeg_create_decompress(info);
  jpeg->created = 1;
  jpeg->progress.progress_monitor = monitor_progress;
  info->progress = &jpeg->progress;
  jpeg->source.next_input_byte = bytes;
  jpeg->source.bytes_in_buffer = len;
  jpeg->source.init_source = init_source;
  jpeg->source.fill_input_buffer = fill_input_buffer;
  jpeg->source.skip_input_data = skip_input_data;
  jpeg->source.resync_to_restart = jpeg_resync_to_restart;
  jpeg->source.term_source = term_source;
  info->src = &jpeg->source;

  jpeg_read_header(info, TRUE);
  switch (info->jpeg_color_space) {
  case JCS_GRAYSCALE:
  case JCS_YCbCr:
  case JCS_RGB:
    info->out_color_space = JCS_RGB;
    break;
  case JCS_CMYK:
  case JCS_YCCK:
    info->out_color_space = JCS_CMYK;
    break;
  default:
    snprintf(jpeg->message, sizeof jpeg->message, "its %d components are of no known colour space",
             info->num_components);
    return QF_BROKEN;
  }
  info->scale_num = eighths;
  info->scale_denom = 8;
  jpeg_start_decompress(info);
  layout->width = info->image_width;
  layout->height = info->image_height;
  layout->scaled_width = info->output_width;
  layout->scaled_height = info->output_height;
  layout->channels = (uint32_t)info->output_components;
  if (first_column >= info->output_width || columns == 0 ||
      columns > info->output_width - first_column) {
    snprintf(jpeg->message, sizeof jpeg->message, "columns beyond the picture");
    return QF_BROKEN;
  }
  if (columns < info->output_width) {
    JDIMENSION at = first_column, count = columns;
    if (info->data_precision == 12)
      jpeg12_crop_scanline(info, &at, &count);
    else
      jpeg_crop_scanline(info, &at, &count);
    first_column = at;
    columns = count;
  }
  layout->first_column = first_column;
  layout->columns = columns;
  if (info->data_precision == 12) {
    jpeg->line_samples = columns * layout->channels;
    jpeg->line = (*info->mem->alloc_large)((j_common_ptr)info, JPOOL_IMAGE,
                                           sizeof(J12SAMPLE) * jpeg->line_samples);
  }
  describe_scan(jpeg, bytes, eighths, first_column, columns, scan);
  return QF_OK;
}

/* Reads the header and prepares for rows of the columns [first_column, first_column + columns) of
 * the picture scaled by eighths / 8; more columns may come, to whole blocks: see `layout`. What
 * `scan` points to is there until the next call of qf_jpeg_begin, qf_jpeg_end or qf_jpeg_free. */
int qf_jpeg_begin(struct qf_jpeg *jpeg, const uint8_t *bytes, size_t len, int lenient,
                  int max_scans, uint32_t eighths, uint32_t first_column, uint32_t columns,
                  struct qf_jpeg_layout *layout, struct qf_jpeg_scan *scan)
{
  /* A fresh object for each picture: libjpeg keeps tables from one to the next, and a damaged file
   * without its own would be decoded with those of whichever came before it. */
  end(jpeg);
  jpeg->lenient = lenient;
  jpeg->max_scans = max_scans;
  jpeg->status = QF_OK;
  jpeg->message[0] = 0;
  jpeg->info.err = jpeg_std_error(&jpeg->errors);
  jpeg->errors.error_exit = error_exit;
  jpeg->errors.emit_message = emit_message;
  jpeg->errors.output_message = output_message;
  jpeg->info.client_data = jpeg;
  if (setjmp(jpeg->escape))
    return jpeg->status;
  return begin(jpeg, bytes, len, eighths, first_column, columns, layout, scan);
}

static int read_rows(struct qf_jpeg *jpeg, uint32_t rows, uint8_t *out, size_t stride)
{
  enum { AT_ONCE = 16 };
  JSAMPROW lines[AT_ONCE];
  uint32_t done = 0;

  while (done < rows) {
    uint32_t wanted = rows - done < AT_ONCE ? rows - done : AT_ONCE, i, got;
    for (i = 0; i < wanted; i++)
      lines[i] = out + (size_t)(done + i) * stride;
    got = jpeg_read_scanlines(&jpeg->info, lines, wanted);
    if (got == 0)
      return QF_BROKEN;
    done += got;
  }
  return QF_OK;
}

/* The same for a picture of 12 bits, of which the high eight are written. */
static int read_rows_of_12(struct qf_jpeg *jpeg, uint32_t rows, uint8_t *out, size_t stride)
{
  J12SAMPROW line = jpeg->line;
  uint32_t done, i;

  for (done = 0; done < rows; done++) {
    if (jpeg12_read_scanlines(&jpeg->info, &line, 1) == 0)
      return QF_BROKEN;
    for (i = 0; i < jpeg->line_samples; i++)
      out[done * stride + i] = (uint8_t)(line[i] >> 4);
  }
  return QF_OK;
}

static uint32_t skip_rows(struct jpeg_decompress_struct *info, uint32_t rows)
{
  return info->data_precision == 12 ? jpeg12_skip_scanlines(info, rows)
                                    : jpeg_skip_scanlines(info, rows);
}

/* Passes over `skipped` rows and writes the next `rows` to `out`, `stride` bytes apart. The caller
 * answers for: begun, skipped + rows within scaled_height, stride at least columns x channels.
 * MCUs come from `next_mcu` unless it is null, which it has to be where the scan has no block_count.
 * Returns QF_GIVEN_UP if they cannot go on. */
int qf_jpeg_rows(struct qf_jpeg *jpeg, uint32_t skipped, uint32_t rows, uint8_t *out,
                 size_t stride, qf_jpeg_next_mcu next_mcu, void *scan)
{
  if (!jpeg->created)
    return QF_BROKEN;
  if (next_mcu) {
    jpeg->next_mcu = next_mcu;
    jpeg->scan = scan;
    ((struct entropy_decoder *)jpeg->info.entropy)->decode_mcu = decode_mcu;
  }
  if (setjmp(jpeg->escape))
    return jpeg->status;
  if (skipped > 0 && skip_rows(&jpeg->info, skipped) != skipped)
    return QF_BROKEN;
  if (jpeg->info.data_precision == 12)
    return read_rows_of_12(jpeg, rows, out, stride);
  return read_rows(jpeg, rows, out, stride);
}

/* Drops what libjpeg holds for the picture. */
void qf_jpeg_end(struct qf_jpeg *jpeg)
{
  end(jpeg);
}
